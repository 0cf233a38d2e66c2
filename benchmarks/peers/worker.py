"""One system in a process of its own: ``python -m benchmarks.peers.worker SYSTEM``.

Reads one JSON request a line and writes one JSON reply a line. `Worker` is the other end. Every
system gets the same cores and the same number of threads, set before anything is imported.
"""

import contextlib
import json
import os
import pathlib
import queue
import resource
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Failure(RuntimeError):
    """The system raised, died, or took too long."""


def surroundings(threads: int) -> dict[str, str]:
    """The environment of a process of so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BENCH_THREADS")
    quiet = {"PYTHONWARNINGS": "ignore", "JAX_PLATFORMS": "cpu"}
    return {**os.environ, **dict.fromkeys(names, str(threads)), **quiet}


class Worker:
    """A running system."""

    def __init__(self, system: str, threads: int = 1, environment: dict[str, str] | None = None):
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", system],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**surroundings(threads), **(environment or {})},
        )
        self.replies: queue.Queue = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        try:
            self.ready = self._reply(300)
        except Failure:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - begin

    def _read(self):
        for line in self.process.stdout or ():
            self.replies.put(json.loads(line))
        self.replies.put(None)

    def _reply(self, timeout):
        try:
            reply = self.replies.get(timeout=timeout)
        except queue.Empty:
            self.close()
            raise Failure(f"no answer within {timeout:.0f} s") from None
        if reply is None:
            raise Failure("the process died")
        if "error" in reply:
            raise Failure(reply["error"])
        return reply

    def ask(self, timeout: float = 600, **request) -> dict[str, Any]:
        """Send a request and wait for its reply."""
        if self.process.poll() is not None:
            raise Failure("the process died")
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._reply(timeout)

    def close(self):
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def peak_bytes() -> int:
    """The most resident memory that this process has had."""
    status = pathlib.Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        # A process starts with the maxrss of the one that started it, but with no VmHWM.
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def pinned(threads: int) -> None:
    """Stay on the last cores, or those before: BENCH_LANE counts from the end."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        end = len(cores) - threads * int(os.environ.get("BENCH_LANE", "0"))
        os.sched_setaffinity(0, cores[end - threads : end])


def serve(system: str) -> None:
    """Answer requests until the input ends."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes elsewhere
    threads = int(os.environ["BENCH_THREADS"])
    pinned(threads)

    def send(reply):
        channel.write(json.dumps(reply) + "\n")
        channel.flush()

    try:
        from benchmarks.peers import adapter as adapters

        adapter = adapters.load(system)
        reply = {"version": adapter.version(), "framework": adapter.framework, "note": adapter.note}
        if adapter.framework == "torch":
            import torch

            torch.set_num_threads(threads)
            reply["framework_version"] = torch.__version__
        else:
            import jax

            reply["framework_version"] = jax.__version__
        __import__(adapter.module)
    except Exception as error:
        send({"error": f"{type(error).__name__}: {error}"[:300]})
        return
    send({**reply, "imported_bytes": peak_bytes()})
    for line in sys.stdin:
        try:
            send(answer(adapter, json.loads(line)))
        except Exception as error:
            traceback.print_exc()
            send({"error": f"{type(error).__name__}: {error}"[:300]})


def answer(adapter, request: dict[str, Any]) -> dict[str, Any]:
    """What a request asks for; the seconds are those of the call alone."""
    from benchmarks.peers import tasks

    if request["do"] == "setup":
        task = tasks.read(pathlib.Path(request["task"]))
        begin = time.perf_counter()
        adapter.setup(task)
        seconds = time.perf_counter() - begin
        methods = {
            name: {
                "ladder": list(m.ladder),
                "gives": list(m.gives),
                "documented": list(m.gives if m.documented is None else m.documented),
            }
            for name, m in adapter.methods().items()
        }
        return {"seconds": seconds, "methods": methods, "peak_bytes": peak_bytes()}
    if request["do"] == "call":
        method = adapter.methods()[request["method"]]
        begin = time.perf_counter()
        found = method.call(request["options"], request["seed"])
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "answer": found.as_json(), "peak_bytes": peak_bytes()}
    raise ValueError(f"no request {request['do']!r}")


if __name__ == "__main__":
    serve(sys.argv[1])
