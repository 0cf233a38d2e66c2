"""ResNet-18, a GPT and a ViT of 5 to 11 million parameters: products and first answers.

Group norm and 32 images of 32 x 32; 8 sequences of 128 tokens of a vocabulary of 8,192; ViT-Tiny
and the same images; each after 20 steps of Adam. The gradient, products with the Hessian (the
primal pass repeated, or kept) and with the Gauss-Newton matrix (likewise), in flatjax and, where it
is installed, in PyTorch: two passes of `torch.autograd.grad`, the graph of the first one kept or
not, and two of transposed ones with the logits' Hessian between. Their norms are compared, so that
both are the same matrices. Then questions, each put to each system in a fresh process: five
eigenvalues, the trace, a density. Processes have one thread, and the processor's seconds are
counted.
"""

import functools
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.peers import first_answers, user_models, worker

REPEATS = {True: 1, False: 2}
MODULES = {
    "flatjax": "flatjax",
    first_answers.UNVERIFIED: "flatjax",
    "PyHessian": "pyhessian",
    "curvlinops": "curvlinops",
}
# What is asked of which, and the processor's seconds that an answer may take.
TOP = (("ggn", "top"), ("hessian", "top"))
ASKED = {
    True: {"gpt": TOP},
    False: dict.fromkeys(
        ("gpt", "vit", "resnet"), (*TOP, ("hessian", "trace"), ("hessian", "density"))
    ),
}
LIMITS = {"top": 600, "trace": 400, "density": 200, "reference": 1800}


def process(module: str, *arguments: object) -> Any:
    """What a module says in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.peers.{module}", *map(str, arguments)]
    surroundings = {**worker.surroundings(1), "BENCH_BEGIN": str(time.time())}
    done = subprocess.run(
        command, capture_output=True, text=True, env=surroundings, cwd=worker.ROOT, check=False
    )
    if done.returncode == -signal.SIGXCPU:  # in a call that does not come back to Python
        return {"failure": "not within its seconds of the processor, and two minutes more"}
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failure": (said or [f"the process ended with {done.returncode}"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def main(rows: Any, short: bool = False) -> dict[str, Any]:
    """Products by network and quantity; answers by network, matrix, question and system."""
    products, answers = {}, {}
    for name in user_models.NAMES:
        path = user_models.prepared(name, short)
        found = rows.get(f"{name}/products", ask_products(name, path, short))
        if "failure" in found:
            raise RuntimeError(f"{name}: {found['failure']}")
        products[name] = found
        print(f"   {name}: {found}", flush=True)
    for name in ASKED[short]:
        answers[name] = answers_of(name, rows, short)
    return {"products": products, "answers": answers}


def ask_products(name: str, path: Any, short: bool) -> Callable[[], Any]:
    """The measurement of a network's products."""
    return functools.partial(process, "user_products", name, path, REPEATS[short])


def ask_one(system: str, name: str, path: Any, matrix: str, question: str) -> Callable[[], Any]:
    """The measurement of one answer."""
    arguments = (system, name, path, matrix, question, LIMITS[question])
    return functools.partial(process, "first_answers", *arguments)


def answers_of(name: str, rows: Any, short: bool) -> dict[str, Any]:
    """The answers about one network, the systems in turn, and a reference for the eigenvalues."""
    path, out = user_models.prepared(name, short), {}
    installed = [s for s, module in MODULES.items() if importlib.util.find_spec(module)]
    for matrix, question in ASKED[short][name]:
        cell = {}
        for system in installed:
            if system == "PyHessian" and matrix != "hessian":
                continue
            if system == first_answers.UNVERIFIED and question != "top":
                continue
            ask = ask_one(system, name, path, matrix, question)
            cell[system] = rows.get(f"{name}/{matrix}/{question}/{system}", ask)
            print(f"   {name} {matrix} {question} {system}: {cell[system]}", flush=True)
        if question == "top":
            ask = ask_one("flatjax", name, path, matrix, "reference")
            cell["reference"] = rows.get(f"{name}/{matrix}/reference", ask)
            exact = cell["reference"].get("values")
            for row in cell.values():
                if exact and "values" in row:
                    row["error"] = worst(row["values"], exact)
        out.setdefault(matrix, {})[question] = cell
    return out


def worst(values: list[float], exact: list[float]) -> float:
    """The largest relative error."""
    return max(abs(a / b - 1) for a, b in zip(values, exact, strict=True))
