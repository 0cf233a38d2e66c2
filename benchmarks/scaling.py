"""What a product should cost on many devices: a model on paper, from one device's figures.

``python -m benchmarks scaling`` measures one device; ``python -m benchmarks.scaling`` prints the
tables of `docs/guide/scaling-out.md` from the kept measurement, and ``--write`` puts them there.

The model. A product over T tokens (or examples) of a network with P parameters is

- c P T / N floating-point operations on each of N devices; c is counted in the compiled program;
- one all-reduce of P numbers where the params are replicated: every device sends, and receives,
  2 (N - 1) / N of them (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002); or, where they
  are sharded, `GATHERS` all-gathers and one reduce-scatter, (N - 1) / N of them each;
- beside it, in an eigensolver, two passes of Gram-Schmidt over a basis of m vectors, each of which
  reads the basis twice. Replicated, every device does all of it; sharded, its part.

Measured are c and one device's speed, published the figures of `MACHINES`, assumed its latencies
and `EFFICIENCY`. Collectives and computation are added, not overlapped; nothing is lost to
stragglers or the host.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax
import jax.numpy as jnp

import flatjax
from benchmarks import _networks
from flatjax import _trees as trees
from flatjax.linalg.vectors import _basis as bases

ROOT = pathlib.Path(__file__).parents[1]
KEPT = ROOT / "benchmarks" / "results" / "scaling.json"
PAGE = ROOT / "docs" / "guide" / "scaling-out.md"
REPEATS, VECTORS = 9, 16

NUMBER = 4  # bytes of a float32
GATHERS = 4
"""Of params and tangents, each for the forward and for the backward pass."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Published figures of one device and of what joins it to others.

    Attributes:
      flops: peak floating-point operations a second of the matrix units, bfloat16.
      memory: bytes a second from the device's memory.
      capacity: bytes of it.
      links: bytes a second that a device sends to its nearest neighbours.
      island: how many devices are joined by these links.
      network: bytes a second that a device sends beyond its island.
      latency: seconds for one step of a collective, an assumption.
    """

    flops: float
    memory: float
    capacity: float
    links: float
    island: int
    network: float
    latency: float


MACHINES = {
    # 459 TFLOP/s, 95 GiB, 2575 GiB/s; links of 1200 GB/s counted in both directions, a 3D torus of
    # up to 6144 chips a job: https://docs.cloud.google.com/tpu/docs/v5p
    "TPU v5p": Machine(459e12, 2575 * 2**30, 95 * 2**30, 600e9, 6144, 6.25e9, 1e-6),
    # 989 TFLOP/s, 141 GB, 4.8 TB/s, NVLink of 900 GB/s in both directions between 8 in a server
    # (https://www.nvidia.com/en-us/data-center/h200/) and a network card of 400 Gbit/s for each
    # (https://docs.nvidia.com/dgx/dgxh100-user-guide/).
    "H200": Machine(989e12, 4.8e12, 141e9, 450e9, 8, 50e9, 5e-6),
}
EFFICIENCY = 0.4  # of the peak: an assumption
DEVICES = (1, 8, 64, 512, 4096)  # of the last table; the others have the first four
SIZES = {"124M": 1.24e8, "1B": 1e9, "8B": 8e9}
TOKENS = 2**20  # a fixed batch: what is to be measured does not grow with the machine


# One device, measured.


def _seconds(run) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return min(times)  # what others on the machine take is not the device


def _flops(fn, *args) -> float:
    cost = jax.jit(fn).lower(*args).compile().cost_analysis()
    if cost is None:
        raise RuntimeError(f"{jax.default_backend()} does not report the cost of a program.")
    return float(cost["flops"])


def main() -> dict[str, object]:
    """Measures a transformer's products and a pass of Gram-Schmidt on one device."""
    problem = _networks.transformer(width=256, layers=4, examples=4)
    params, batch = problem.params, problem.batch
    size, tokens = trees.size(params), batch[0].size
    # The embedding is looked up, not multiplied.
    weights = size - params["embedding"].size - params["positions"].size
    operators = {
        "hessian": flatjax.hessian(problem.losses_fn, params, batch),
        "ggn": flatjax.ggn(problem.model_fn, flatjax.softmax_cross_entropy, params, batch),
    }
    multiply, products = jax.jit(lambda op, v: op.mv(v)), {}
    for name, op in operators.items():
        flops = _flops(lambda op, v: op.mv(v), op, params)
        seconds = _seconds(lambda op=op: multiply(op, params))
        products[name] = {
            "flops": flops,
            "flops_per_weight_and_token": flops / (weights * tokens),
            "seconds": seconds,
            "flops_per_second": flops / seconds,
        }
    basis = jax.tree.map(lambda a: jnp.stack([a] * VECTORS), params)
    project = jax.jit(bases.project_out)
    seconds = _seconds(lambda: project(basis, params))
    read = 2 * VECTORS * size * NUMBER
    results = {
        "parameters": size,
        "weights": weights,
        "tokens": tokens,
        "products": products,
        "gram_schmidt_pass": {"vectors": VECTORS, "bytes": read, "seconds": seconds},
    }
    for name, row in products.items():
        print(
            f"   {name:8} {row['flops_per_weight_and_token']:.1f} flops a weight and token, "
            f"{row['flops_per_second'] / 1e9:.0f} GFLOP/s"
        )
    print(f"   Gram-Schmidt {read / seconds / 1e9:.1f} GB/s")
    return results


# Many devices, on paper.


def _collective(machine: Machine, devices: int, size: float) -> tuple[float, float]:
    """Bytes sent by a device and seconds, of an all-gather or reduce-scatter of ``size`` bytes.

    Within the island, then between islands: there a device handles its island's share only.
    """
    inside = min(devices, machine.island)
    outside = devices // inside
    near, far = size * (inside - 1) / inside, size / inside * (outside - 1) / outside
    steps = _steps(inside, machine) + (outside - 1).bit_length()
    return near + far, near / machine.links + far / machine.network + steps * machine.latency


def _steps(devices: int, machine: Machine) -> float:
    """Steps in a row: half round each ring of a cubic torus, or one through a switch."""
    if devices == 1:
        return 0
    return 3 * round(devices ** (1 / 3)) / 2 if machine.island > 8 else 1


@dataclasses.dataclass(frozen=True)
class Cost:
    """A product, on each device.

    Attributes:
      compute: seconds of arithmetic.
      sent: bytes sent.
      communicate: seconds of collectives.
      orthogonalise: seconds that an eigensolver adds for a product, with a basis of 50 vectors.
      held: bytes of params, vectors and basis.
    """

    compute: float
    sent: float
    communicate: float
    orthogonalise: float
    held: float

    @property
    def seconds(self) -> float:
        """A product."""
        return self.compute + self.communicate

    @property
    def efficiency(self) -> float:
        """The share of the time of a product in which the device computes."""
        return self.compute / self.seconds


def product(
    machine: Machine,
    size: float,
    devices: int,
    *,
    flops: float,
    tokens: float = TOKENS,
    sharded: bool = False,
    vectors: int = 50,
) -> Cost:
    """The model.

    Args:
      machine: the devices.
      size: the number of parameters.
      devices: how many devices.
      flops: a parameter and token.
      tokens: in the whole batch.
      sharded: whether the params are.
      vectors: of the eigensolver's basis.
    """
    whole = NUMBER * size
    sent, seconds = _collective(machine, devices, whole)
    rounds = GATHERS + 1 if sharded else 2  # an all-reduce is a reduce-scatter and an all-gather
    parts = devices if sharded else 1
    # Two passes, of which each reads the basis twice and sends one row of coefficients.
    row = 2 * 2 * _collective(machine, devices, NUMBER * vectors)[1]
    return Cost(
        compute=flops * size * tokens / devices / (EFFICIENCY * machine.flops),
        sent=rounds * sent,
        communicate=rounds * seconds,
        orthogonalise=4 * vectors * whole / parts / machine.memory + row,
        held=(vectors + 4) * whole / parts,
    )


def break_even(machine: Machine, devices: int, *, flops: float, sharded: bool = False) -> float:
    """Tokens a device at which half of a product's time is computing; P cancels but in latency."""
    cost = product(machine, 1e10, devices, flops=flops, sharded=sharded)
    return TOKENS / devices * cost.communicate / cost.compute


# Tables.


def _amount(value: float, unit: str) -> str:
    scales = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")]
    scale, prefix = next(((s, p) for s, p in scales if value >= s), (1, ""))
    return f"{value / scale:.3g} {prefix}{unit}"


def tables(kept: dict) -> str:
    """The tables of the page."""
    flops = kept["results"]["products"]["hessian"]["flops_per_weight_and_token"]
    lines = []
    for name, machine in MACHINES.items():
        lines += [
            f"**{name}, params replicated**",
            "",
            "| P | N | compute | sent by a device | all-reduce | product | computing | "
            "+ orthogonalisation | held by a device |",
            "| --: | --: | --: | --: | --: | --: | --: | --: | --: |",
        ]
        lines += _rows(machine, flops, sharded=False)
        lines += [
            "",
            f"**{name}, params sharded**",
            "",
            "| P | N | compute | sent by a device | gather, scatter | product | computing | "
            "+ orthogonalisation | held by a device |",
            "| --: | --: | --: | --: | --: | --: | --: | --: | --: |",
        ]
        lines += _rows(machine, flops, sharded=True)
        lines.append("")
    lines += [
        "**Tokens a device below which communication takes the larger part (P large)**",
        "",
        "| devices | " + " | ".join(f"{n}, {how}" for n in MACHINES for how in _HOW) + " |",
        "| --: |" + " --: |" * 2 * len(MACHINES),
    ]
    for devices in DEVICES[1:]:
        found = [
            f"{break_even(machine, devices, flops=flops, sharded=sharded):.0f}"
            for machine in MACHINES.values()
            for sharded in (False, True)
        ]
        lines.append(f"| {devices} | " + " | ".join(found) + " |")
    return "\n".join(lines) + "\n"


_HOW = ("replicated", "sharded")


def _rows(machine: Machine, flops: float, *, sharded: bool) -> list[str]:
    lines = []
    for name, size in SIZES.items():
        for devices in DEVICES[:-1]:
            cost = product(machine, size, devices, flops=flops, sharded=sharded)
            held = _amount(cost.held, "B")
            cells = [
                name,
                f"{devices}",
                _amount(cost.compute, "s"),
                _amount(cost.sent, "B") if cost.sent else "0",
                _amount(cost.communicate, "s") if cost.communicate else "0",
                _amount(cost.seconds, "s"),
                f"{cost.efficiency:.0%}",
                _amount(cost.orthogonalise, "s"),
                held if cost.held <= machine.capacity else f"{held}, too much",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


BEGIN, END = "<!-- begin: python -m benchmarks.scaling --write -->", "<!-- end -->"


def rendered(page: str, kept: dict) -> str:
    """The page with fresh tables between its marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables(kept)}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(ROOT)}")
    measured = json.loads(KEPT.read_text())
    if parser.parse_args().write:
        PAGE.write_text(rendered(PAGE.read_text(), measured))
    else:
        print(tables(measured))
