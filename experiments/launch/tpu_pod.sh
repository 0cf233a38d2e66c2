#!/usr/bin/env bash
# A run on all workers of a Cloud TPU slice, on which this repository is installed in FOLDER:
#
#   TPU=NAME-OF-SLICE ZONE=us-east5-a experiments/launch/tpu_pod.sh NAME --out gs://BUCKET/runs/NAME
#
# Every worker runs the same command and finds the others by itself. With DRY_RUN=1 the command is
# printed and not run. To install:
#
#   gcloud compute tpus tpu-vm ssh $TPU --zone $ZONE --worker=all \
#     --command 'git clone REPOSITORY flatjax && pip install -e "flatjax[experiments]" "jax[tpu]"'
set -eu

if [[ $# -lt 1 ]]; then
  echo "usage: TPU=NAME ZONE=ZONE tpu_pod.sh NAME [options]" >&2
  exit 2
fi
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
command=$(printf '%q ' cd "${FOLDER:-flatjax}")
command+="&& $(printf '%q ' "${PYTHON:-python3}" -u -m experiments "$@" --distributed)"
run=(gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all "--command=$command")
if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${run[@]}"
  echo
else
  exec "${run[@]}"
fi
