"""What every system of the comparison looks like from outside.

An adapter has methods, the ways in which its system can be asked, each with a ladder of options
of rising effort. A method answers one quantity or several: the largest eigenvalues, the smallest,
the trace, the density. The comparison finds for every quantity the cheapest method and the lowest
rung that reach the wanted true error, so that each system is shown at its best.
"""

import dataclasses
import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

SYSTEMS = ("flatjax", "pyhessian", "curvlinops", "eigenthings", "matfree", "traceax")
TOP, BOTTOM = 10, 2


class Task(NamedTuple):
    """A trained network with its data, in NumPy, the same for every system.

    Attributes:
      kind: ``"mlp"``, ``"cnn"`` or ``"transformer"``.
      heads: the attention heads of a transformer.
      params: arrays by the name of their leaf.
      inputs: the inputs of the batch.
      labels: the class ids.
    """

    kind: str
    heads: int
    params: dict[str, np.ndarray]
    inputs: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass
class Answer:
    """What one call found; a quantity that it does not give is ``None``.

    Attributes:
      products: how many products it spent.
      top: the largest eigenvalues, descending.
      bottom: the smallest eigenvalues, ascending.
      trace: the trace.
      nodes: the points of the density.
      weights: their weights, of sum 1.
    """

    products: int
    top: Any = None
    bottom: Any = None
    trace: Any = None
    nodes: Any = None
    weights: Any = None

    def as_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        out: dict[str, Any] = {"products": int(self.products)}
        for name in ("top", "bottom", "nodes", "weights"):
            value = getattr(self, name)
            out[name] = None if value is None else np.asarray(value, np.float64).tolist()
        out["trace"] = None if self.trace is None else float(self.trace)
        return out


class Method(NamedTuple):
    """One way to ask a system.

    Attributes:
      call: ``call(options, seed) -> Answer``.
      ladder: options of rising effort.
      gives: the quantities it answers, of ``top1``, ``top``, ``bottom``, ``trace``, ``density``.
      documented: those of them that the system's documentation offers it for, all by default;
        for the others its results are read beyond that.
    """

    call: Callable[[dict[str, Any], int], Answer]
    ladder: Sequence[dict[str, Any]]
    gives: tuple[str, ...]
    documented: tuple[str, ...] | None = None


class Adapter:
    """A system; subclasses fill in the rest."""

    package: ClassVar[str]
    module: ClassVar[str]
    framework: ClassVar[str]
    note: ClassVar[str] = ""

    def setup(self, task: Task) -> None:
        """Take the network, weights and data over."""
        raise NotImplementedError

    def methods(self) -> dict[str, Method]:
        """The methods by name, after `setup`."""
        raise NotImplementedError

    def product(self, vector: np.ndarray) -> np.ndarray:
        """The Hessian times a vector, in the order of the leaves of the task."""
        raise NotImplementedError

    def version(self) -> str:
        """The version that is installed."""
        return importlib.metadata.version(self.package)


def quadrature(nodes, weights) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the Gauss rules of several runs: rows of nodes, rows of weights of sum 1."""
    nodes, weights = np.asarray(nodes, np.float64), np.asarray(weights, np.float64)
    return nodes.ravel(), (weights / len(weights)).ravel()


def ends(values, count_top: int = TOP, count_bottom: int = BOTTOM):
    """The largest values, descending, and the smallest, ascending."""
    ordered = np.sort(np.asarray(values, np.float64))
    return ordered[::-1][:count_top], ordered[:count_bottom]


def load(system: str) -> Adapter:
    """The adapter of a system; raises what its import raises."""
    if system not in SYSTEMS:
        raise ValueError(f"no system {system!r}; there are {', '.join(SYSTEMS)}")
    return importlib.import_module(f"benchmarks.peers.{system}").adapter()
