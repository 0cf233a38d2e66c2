"""The launchers: what they start, how they end, and that they are what they claim to be."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import typing

import pytest
import yaml

from experiments import registry
from experiments.__main__ import _parse
from experiments.lib.runs import distributed
from tests.repository import ROOT

LAUNCH = ROOT / "experiments" / "launch"
# Stands in for python: writes its arguments to a file, and ends as told for its number.
FAKE = f"""#!{sys.executable}
import json, os, sys, time, signal
if sys.argv[1] == "-c":
    print(12345)
    sys.exit()
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
index = int(sys.argv[-1]) if sys.argv[-2] == "--process" else 0
folder = os.environ["FOLDER_OF_TEST"]
path = os.path.join(folder, str(index))
with open(path + ".part", "w") as file:
    json.dump([sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES")], file)
os.rename(path + ".part", path)
time.sleep(float(os.environ.get("PAUSE", 0)))
sys.exit(int(os.environ["STATUSES"].split()[index]))
"""


@pytest.fixture
def fake(tmp_path):
    """Starts a launcher with a stand-in for the programs it calls."""
    programs = tmp_path / "programs"
    programs.mkdir()
    python = programs / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    for name in ("srun", "scontrol"):
        path = programs / name
        ended = "exec" if name == "srun" else ":"
        shift = "shift; " if name == "srun" else ""
        path.write_text(f'#!/bin/sh\necho {name} "$@"\n{shift}{ended} "$@"\n')
        path.chmod(0o755)

    def start(script, *arguments, statuses="0 0", **more):
        env = {"PYTHON": str(python), "STATUSES": statuses, "FOLDER_OF_TEST": str(tmp_path)}
        env["PATH"] = f"{programs}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", LAUNCH / script, *map(str, arguments)],
            env={**os.environ, **env, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def started(tmp_path, index):
    return json.loads((tmp_path / str(index)).read_text())


@pytest.mark.parametrize("script", sorted(p.name for p in LAUNCH.iterdir() if p.suffix != ".yaml"))
def test_scripts_are_shell(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [("0 0", 0), ("75 75", 75), ("0 75", 75), ("75 1", 1), ("134 1", 134), ("0 3", 3)],
)
def test_local_ends_as_its_processes_do(fake, tmp_path, statuses, status):
    process = fake("local.sh", 2, "NAME", "--seeds", "two words", statuses=statuses)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    for index in range(2):
        arguments, gpus = started(tmp_path, index)
        assert arguments[:5] == ["-m", "experiments", "NAME", "--seeds", "two words"]
        options, rest = distributed.take_options(arguments[3:])
        assert rest == ["--seeds", "two words"]
        assert options == distributed.Options("127.0.0.1:12345", 2, index)
        assert gpus is None


def test_local_gives_each_process_its_own_gpus(fake, tmp_path):
    fake("local.sh", 2, "NAME", GPUS_EACH="4").communicate(timeout=60)
    assert [started(tmp_path, i)[1] for i in range(2)] == ["0,1,2,3", "4,5,6,7"]


def test_local_hands_signals_on(fake, tmp_path):
    process = fake("local.sh", 2, "NAME", PAUSE="60")
    while not all((tmp_path / str(i)).exists() for i in range(2)):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == distributed.PREEMPTED


def test_local_says_how_to_call_it(fake):
    process = fake("local.sh", "NAME")
    assert "usage: local.sh PROCESSES NAME" in process.communicate(timeout=30)[0]
    assert process.returncode == 2


@pytest.mark.parametrize(("status", "again"), [("0", False), ("75", True), ("1", False)])
def test_slurm_puts_an_unfinished_run_back_into_the_queue(fake, tmp_path, status, again):
    process = fake("slurm.sbatch", "NAME", "--seeds", "2", statuses=status, SLURM_JOB_ID="17")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == int(status), output
    assert ("scontrol requeue 17" in output) == again
    arguments, _ = started(tmp_path, 0)
    assert arguments == ["-u", "-m", "experiments", "NAME", "--seeds", "2", "--distributed"]


def test_slurm_asks_in_time_for_the_run_to_stop():
    text = (LAUNCH / "slurm.sbatch").read_text()
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]
    # To the processes, not to the script (`B:`), and long before SLURM kills them.
    assert "--signal=TERM@120" in options
    assert "--requeue" in options


def test_tpu_pod_runs_the_same_command_on_every_worker(fake):
    process = fake(
        "tpu_pod.sh", "NAME", "--out", "gs://b/two words", TPU="t", ZONE="z", DRY_RUN="1"
    )
    words = shlex.split(process.communicate(timeout=30)[0])
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "t"]
    assert words[6:9] == ["--zone", "z", "--worker=all"]
    remote = shlex.split(words[9].removeprefix("--command="))
    assert remote[:3] == ["cd", "flatjax", "&&"]
    assert remote[4:] == [
        *["-u", "-m", "experiments", "NAME", "--out", "gs://b/two words", "--distributed"]
    ]


def test_tpu_pod_says_what_is_missing(fake):
    process = fake("tpu_pod.sh", "NAME")
    assert "set TPU to the name of the slice" in process.communicate(timeout=30)[0]
    assert process.returncode != 0


def test_the_manifest_is_consistent():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"  # what a podFailurePolicy needs
    ignored = [
        rule.get("onExitCodes", {}).get("values") for rule in spec["podFailurePolicy"]["rules"]
    ]
    assert [distributed.PREEMPTED] in ignored
    (container,) = pod["containers"]
    command = shlex.split(container["command"][-1].replace('"$JOB_COMPLETION_INDEX"', "3"))
    options, rest = distributed.take_options(command[6:])
    port = service["spec"]["ports"][0]["port"]
    assert options == distributed.Options(f"{name}-0.{pod['subdomain']}:{port}", 4, 3)
    assert spec["completions"] == spec["parallelism"] == 4
    assert rest[rest.index("--out") + 1].startswith(container["volumeMounts"][0]["mountPath"])


def documented_commands():
    """The arguments after `python -m experiments` wherever the project tells someone to run it."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *LAUNCH.iterdir()]
    pages += (ROOT / "experiments").rglob("*.py")
    found = set()
    for page in pages:
        if "_build" not in page.parts:
            found |= set(re.findall(r"python -m experiments ([^`\"#|<\n]+)", page.read_text()))
    return {tuple(shlex.split(text)) for text in found if "{" not in text and "[" not in text}


def test_documented_commands_are_commands():
    known = registry.summaries().keys()
    commands = documented_commands()
    assert {name for name, *_ in commands} >= known
    for name, *words in commands:
        # What stands for the reader's own values: N, I, HOST:PORT.
        words = ["1" if word.isupper() else word for word in words]
        _, options = distributed.take_options(words)
        others = ("NAME", "report", "data", "--list", "flat_rates")  # the last is the guide's own
        assert name in known or name in others, name
        if options[:1] == ["--preset"]:  # which of them an experiment has, its import would tell
            assert options[1] in typing.get_args(registry.Preset)
            options = options[2:]
        if name in known and options:
            _parse(name, *registry.load(name), options)
