"""Signals outside of training: at once, with the status of what is unfinished."""

import signal
import subprocess
import sys

import pytest

from experiments.lib.runs import leaving


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_process_whatever_would_catch_it(number, status):
    code = (
        "import os; from experiments.lib.runs import leaving; leaving.install()\n"
        f"try: os.kill(os.getpid(), {int(number)})\n"
        "except BaseException: pass\n"
        "while True: pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == status
    assert done.stderr == f"Preempted: stopped by {number.name}; the same command continues\n"


def test_the_command_line_is_covered_before_its_imports():
    """What is imported when the handlers are there: nothing but their own module."""
    code = (
        "import os, runpy, signal, sys\n"
        "def seen(number, handler, real=signal.signal):\n"
        "    mine = {m for m in sys.modules if m.startswith('experiments.')}\n"
        "    print(sorted(mine)); sys.stdout.flush(); os._exit(0)\n"
        "signal.signal = seen\n"
        "runpy.run_module('experiments', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    packages = ["experiments.lib", "experiments.lib.runs", "experiments.lib.runs.leaving"]
    assert done.stdout.strip() in (str(packages), str(["experiments.__main__", *packages]))


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    saved = leaving.install()
    assert signal.getsignal(signal.SIGTERM) is not before[0]
    leaving.restore(saved)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
