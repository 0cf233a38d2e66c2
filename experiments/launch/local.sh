#!/usr/bin/env bash
# Several processes of one run on this machine:
#
#   experiments/launch/local.sh 2 NAME [options of the experiment]
#
# Each process takes all devices it sees: on GPUs give each its own, as below. On a CPU
# JAX_NUM_CPU_DEVICES sets how many devices a process has. Ends with 0 if all do, with 75 if the run
# was stopped and the same command continues it, else with the status of the first that failed.
set -u

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: local.sh PROCESSES NAME [options]" >&2
  exit 2
fi
processes=$1
shift
python=${PYTHON:-python}
cd "$(dirname "$0")/../.." || exit 1
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}

children=()
stopped=
# One is enough: it tells the others. All, since one of them may be gone already.
trap 'stopped=yes; kill -TERM "${children[@]}" 2>/dev/null' TERM INT
for ((index = 0; index < processes; index++)); do
  devices=()
  if [[ -n ${GPUS_EACH:-} ]]; then
    first=$((index * GPUS_EACH))
    devices=("CUDA_VISIBLE_DEVICES=$(seq -s, "$first" $((first + GPUS_EACH - 1)))")
  fi
  env ${devices[@]+"${devices[@]}"} "$python" -m experiments "$@" --distributed \
    --coordinator "127.0.0.1:$port" --processes "$processes" --process "$index" &
  children+=($!)
done

status=0
for child in "${children[@]}"; do
  # A signal to this script ends the waiting, not the child: wait again.
  found=0
  while true; do
    stopped=
    wait "$child"
    code=$?
    [[ $code -eq 127 ]] || found=$code # 127: it has been waited for
    [[ -n $stopped ]] || break
  done
  if [[ $found -ne 0 && ($status -eq 0 || $status -eq 75) ]]; then
    status=$found
  fi
done
exit "$status"
