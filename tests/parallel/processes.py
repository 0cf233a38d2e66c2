"""Real processes: each with two CPU devices, joined by JAX's own runtime over gloo."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(arguments, *, env=None, **options) -> subprocess.Popen:
    """A Python process in the repository, its output kept; ``arguments`` as after ``python``."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env = {**clean, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **(env or {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=env, **pipes)


def finish(processes, timeout: float = 120) -> list[str]:
    """Waits for all; returns their output, failing with it if one did not end with 0."""
    try:
        outputs = [p.communicate(timeout=timeout)[0] for p in processes]
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
    codes = [p.returncode for p in processes]
    assert codes == [0] * len(codes), f"exit codes {codes}\n" + "\n-----\n".join(outputs)
    return outputs


def run_worker(name: str, folder: pathlib.Path, *, processes: int = 2, timeout: float = 200):
    """Runs ``tests/parallel/NAME.py`` as several processes: address, count, index, folder."""
    address = f"127.0.0.1:{free_port()}"
    worker = pathlib.Path(__file__).parent / f"{name}.py"
    return finish(
        [start([worker, address, processes, i, folder]) for i in range(processes)], timeout
    )
