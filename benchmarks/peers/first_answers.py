"""One question to one system in a fresh process of one thread, cold: from `import` to the answer.

``python -m benchmarks.peers.first_answers SYSTEM NAME FILE MATRIX QUESTION SECONDS`` writes one
JSON object: the answer, the products spent, the processor's seconds since the process began,
seconds by the wall's clock, and the most resident memory. After SECONDS of the processor it says
what it has.
"""

import functools
import json
import os
import resource
import signal
import sys
import time
from typing import Any

import numpy as np

from benchmarks.peers import user_models, worker

COUNT, TOL, RTOL, STEPS = 5, 1e-2, 5e-2, 30
# A standard error of fewer probes is not to be believed; flatjax has a rule of its own.
FEWEST = 8
# Neither of the peers looks for pairs that it has missed.
UNVERIFIED = "flatjax, verify=False"


class TimeUpError(Exception):
    """The processor's seconds are spent."""


class Answer(dict):
    """What is known so far, with the number of products."""

    def counted(self, product):
        """The product, counted."""

        def call(*args, **options):
            self["products"] += 1
            return product(*args, **options)

        return call


def flatjax(
    name: str, path: str, matrix: str, question: str, answer: Answer, verify: bool = True
) -> None:
    """`eigsh`, `trace` and `spectral_density` of a linearised operator."""
    import jax

    import flatjax

    params, batch = jax.tree.map(jax.numpy.asarray, user_models.read(path))
    op = user_models.jax_operators(name, params, batch)[matrix].linearize()
    key = jax.random.key(0)
    if question in ("top", "reference"):
        tol = TOL if question == "top" else 1e-2 * TOL
        pairs = flatjax.eigsh(op, COUNT, tol=tol, key=key, verify=verify)
        answer.update(
            products=int(pairs.num_products),
            values=np.asarray(pairs.values, np.float64).tolist(),
            residuals=np.asarray(pairs.residual_norms, np.float64).tolist(),
            complete=None if pairs.complete is None else bool(pairs.complete),
        )
    elif question == "trace":
        found = flatjax.trace(op, key=key, rtol=RTOL)
        answer.update(
            products=int(found.num_products),
            value=float(found.value),
            standard_error=float(found.standard_error),
        )
    else:
        half = STEPS // 2
        found = flatjax.spectral_density(
            op, key=key, num_probes=1, num_steps=half, deflation_steps=half
        )
        atoms = np.asarray(found.atoms, np.float64)
        answer.update(products=2 * half, smallest=atoms.min(), largest=atoms.max())


def pyhessian(name: str, path: str, matrix: str, question: str, answer: Answer) -> None:
    """The methods of its class ``hessian``, by default."""
    import torch
    from pyhessian import hessian

    from benchmarks.peers import pyhessian as adapters
    from benchmarks.peers import torch_blocks

    if matrix != "hessian":
        raise ValueError(f"PyHessian has no {matrix}")
    module = sys.modules["pyhessian.hessian"]
    module.hessian_vector_product = answer.counted(module.hessian_vector_product)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    adapters.with_eig(torch)
    model, inputs, labels = torch_blocks.model_of(name, *user_models.read(path))
    lib = hessian(model, torch.nn.CrossEntropyLoss(), data=(inputs, labels), cuda=False)
    if question == "top":
        orthnormal = module.orthnormal

        def noted(v, known):
            answer["found"] = len(known)
            return orthnormal(v, known)

        module.orthnormal = noted
        values = lib.eigenvalues(top_n=COUNT)[0]
        answer.update(values=sorted(map(float, values), reverse=True))
    elif question == "trace":
        until_enough(lambda: lib.trace(maxIter=1, tol=0)[0], answer)
    else:
        nodes = np.asarray(lib.density(iter=STEPS, n_v=1)[0])
        answer.update(smallest=float(nodes.min()), largest=float(nodes.max()))


def curvlinops(name: str, path: str, matrix: str, question: str, answer: Answer) -> None:
    """Its operators, SciPy's `eigsh` on them, its trace and its density."""
    import curvlinops as lib
    import torch
    from scipy.sparse.linalg import LinearOperator, eigsh

    from benchmarks.peers import torch_blocks

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, inputs, labels = torch_blocks.model_of(name, *user_models.read(path))
    kind = {"hessian": lib.HessianLinearOperator, "ggn": lib.GGNLinearOperator}[matrix]
    op = kind(
        model,
        torch.nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(inputs, labels)],
        check_deterministic=False,
        num_data=len(inputs),
    )
    if question == "top":
        inner = op.to_scipy(dtype=np.float32)
        matvec = answer.counted(lambda v: inner @ v)
        counted = LinearOperator(inner.shape, matvec=matvec, dtype=np.float32)
        start = np.random.default_rng(0).normal(size=inner.shape[0]).astype(np.float32)
        values = eigsh(counted, COUNT, which="LA", tol=TOL, v0=start, return_eigenvectors=False)
        answer.update(values=np.sort(values.astype(np.float64))[::-1].tolist())
    elif question == "trace":
        one = answer.counted(lambda: float(lib.hutchinson_trace(op, num_matvecs=1)))
        until_enough(one, answer)
    else:
        op._matmat = answer.counted(op._matmat)
        grid = lib.lanczos_approximate_spectrum(op, ncv=STEPS)[0]
        answer.update(smallest=float(grid.min()), largest=float(grid.max()))


def until_enough(sample: Any, answer: Answer) -> None:
    """Samples until the standard error of their mean is small enough."""
    samples: list[float] = []
    while True:
        samples.append(float(sample()))
        if len(samples) < 2:
            continue
        mean, error = np.mean(samples), np.std(samples, ddof=1) / len(samples) ** 0.5
        answer.update(value=float(mean), standard_error=float(error))
        if len(samples) >= FEWEST and error <= RTOL * abs(mean):
            return


def main(system: str, name: str, path: str, matrix: str, question: str, limit: str) -> None:
    """Ask, and write what came of it."""
    answer = Answer(products=0, within=True)

    def stop(*_):
        raise TimeUpError

    signal.signal(signal.SIGXCPU, stop)
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 120))
    worker.pinned(int(os.environ["BENCH_THREADS"]))
    systems = {"flatjax": flatjax, "PyHessian": pyhessian, "curvlinops": curvlinops}
    ask = systems | {UNVERIFIED: functools.partial(flatjax, verify=False)}
    try:
        ask[system](name, path, matrix, question, answer)
    except TimeUpError:
        answer["within"] = False
    answer["processor_seconds"] = time.process_time()
    answer["seconds"] = time.time() - float(os.environ["BENCH_BEGIN"])
    answer["peak_bytes"] = worker.peak_bytes()
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
