"""Runs as they are kept: what `eigsh` goes on from, and states that come back from a checkpoint."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _basis as bases

State = TypeVar("State")

# The noise is known from two products or more: by chance it is 30 times too small in one of a
# thousand runs. Of exact products it is 8 units of rounding at least.
_FAR = 30


@reading.readable
class EigshState(NamedTuple):
    """A run of [`eigsh`][], all arrays: pass it as ``resume=`` to go on from there.

    Attributes:
      run: the Lanczos run, as it was before the first look for missed pairs.
      host: ``(n, 2)`` 32-bit words: the float64 numbers of the host (the projected matrix and when
        to look at it next), bit by bit, because JAX has no float64 by default.
      num_products: the products spent, those on certificates and looks included.
      noise_floor: the noise of a product of this operator, by which another one is told.
    """

    run: krylov.Krylov
    host: jax.Array
    num_products: jax.Array
    noise_floor: jax.Array


class Host(NamedTuple):
    """What the host knows of a run with m rows before it looks for missed pairs, in float64.

    Attributes:
      matrix: ``(m, m)``, the projected matrix.
      start: ``(m,)``, the start vector over the rows.
      beta: the coupling to the next vector.
      norm: the largest Ritz value seen, in magnitude.
      products: the steps done, restarts or not.
      taken: how many of them since the last look at the projected problem.
      steps: how many from that look to the next.
      last: how far it was at the last look, a logarithm; NaN before there was one.
      converged: the steps after which all pairs had converged; NaN before.
      given: whether the start vector may be blind to a wanted pair.
      k: how many pairs were wanted.
      which: which, by its number.
      tol: to which tolerance.
    """

    matrix: np.ndarray
    start: np.ndarray
    beta: float
    norm: float
    products: float
    taken: float
    steps: float
    last: float
    converged: float
    given: float
    k: float
    which: float
    tol: float

    def words(self) -> np.ndarray:
        """All numbers, two words each."""
        flat = np.concatenate([np.ravel(a).astype(np.float64) for a in self])
        return flat.view(np.uint32).reshape(-1, 2)

    @classmethod
    def of(cls, words: jax.Array, m: int) -> "Host":
        """The numbers of `words`."""
        flat = np.ascontiguousarray(jax.device_get(words)).view(np.float64)[:, 0]
        matrix, start, rest = np.split(flat, [m * m, m * m + m])
        return cls(matrix.reshape(m, m).copy(), start, *rest.tolist())

    @property
    def restarted(self) -> bool:
        """Whether a restart has dropped a part of the space."""
        return bool(self.start[0] != 1)


def eigsh_state(run: krylov.Krylov, host: Host) -> EigshState:
    """The state of these; the products and the noise are for the end of the call to say."""
    return EigshState(run, jnp.asarray(host.words()), jnp.int32(0), jnp.zeros_like(run.scale))


def opened(resume: Any, structure: Tree) -> tuple[krylov.Krylov, Host, int, float]:
    """The run of an `EigshState`, what the host knows, the products and the noise, checked."""
    state = restored(EigshState, resume, structure)
    check_run(state.run, structure)
    m = state.run.alphas.shape[0]
    want = (m * m + m + len(Host._fields) - 2, 2)
    if state.host.shape != want or state.host.dtype != jnp.uint32:
        raise ValueError(
            f"resume.host is {state.host.dtype} of shape {state.host.shape} where a run of {m} "
            f"rows has uint32 of shape {want}: the state is damaged."
        )
    return state.run, Host.of(state.host, m), int(state.num_products), float(state.noise_floor)


def check_operator(floor: float, known: float) -> None:
    """Raise if products depart from a run that goes on by far more than from each other.

    Args:
      floor: the noise of a product by what the run says of it now.
      known: what it was when the run was kept.

    Raises:
      ValueError: if it is another operator's run.
    """
    if floor > _FAR * known:
        raise ValueError(
            f"resume is a run of another operator: products depart from it by {floor:.1e}, where "
            f"their own noise was {known:.1e}. Go on with the same params, batch and *args as in "
            "that run, or begin anew without resume=."
        )


def check_run(run: krylov.Krylov, structure: Tree) -> None:
    """Raise unless a run is one of an operator of this structure.

    Raises:
      TypeError: on another tree structure.
      ValueError: on other shapes or dtypes.
    """
    try:
        trees.check(run.vector, structure, "resume: its vector")
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"resume is no run of this operator. {error}\nGo on with the operator of that run (the "
            "same params, their layout over devices included), or begin anew without resume=."
        ) from None
    m, scalar = run.alphas.shape[0], trees.dtype(structure)
    numbers = [run.alphas, run.betas, run.norm, run.scale]
    like = [*jax.tree.leaves(structure), *jax.tree.leaves(structure)]
    rows = [*jax.tree.leaves(run.vector), *jax.tree.leaves(bases.parts_of(run.basis)[0])]
    pairs = [*zip(rows, (a.dtype for a in like), strict=True), *((a, scalar) for a in numbers)]
    for a, dtype in pairs:
        if a.dtype != dtype:
            raise ValueError(
                f"resume was computed in {a.dtype} where vectors of this operator are {dtype}: go "
                "on with params of the dtype (and jax_enable_x64) of that run."
            )
    want = [
        jax.tree.map(lambda a, part=part: jax.tree.leaves(part)[0].shape[:1] + a.shape, structure)
        for part in bases.parts_of(run.basis)
    ]
    got = [jax.tree.map(lambda a: a.shape, part) for part in bases.parts_of(run.basis)]
    if got != want or bases.size(run.basis) != m or run.betas.shape != (m,):
        raise ValueError(
            f"resume is damaged: its basis has the shapes {got}, and {m} coefficients are there."
        )


def restored(kind: type[State], given: Any, structure: Tree) -> State:
    """A state, or what a checkpoint gives back for one that is loaded without its types.

    Args:
      kind: the type of the state: NamedTuples, one of them with a basis of vectors.
      given: the state, or nested mappings (and lists) of its fields.
      structure: of one vector.

    Returns:
      The state.

    Raises:
      TypeError: for anything else.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax.linalg.krylov import _saved as saved, _step as krylov
      >>> run = krylov.start(jnp.ones(3), 2, jax.random.key(0))
      >>> type(saved.restored(krylov.Krylov, run._asdict(), jnp.ones(3))).__name__
      'Krylov'
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise TypeError(
            f"resume must be of type {kind.__name__} (the state of an earlier call) or the mapping "
            f"of its fields that a checkpoint gives back, got {type(given).__name__}."
        )
    found = _named(given)
    parts = len({part for name in found for part in re.findall(r"\bbasis/parts/(\d+)", name)})
    whole, cut = (_template(kind, structure, n) for n in (0, parts))
    template = cut if parts and set(_named(whole)) != set(found) else whole
    names = list(_named(template))
    if set(names) != set(found):
        lacks, more = sorted(set(names) - set(found)), sorted(set(found) - set(names))
        raise TypeError(
            f"resume is no {kind.__name__} of this operator: it lacks {lacks} and has {more}."
        )
    leaves = [jnp.asarray(found[name]) for name in names]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by their path, in which a field, a key and an index look alike."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _template(kind: Any, structure: Tree, parts: int) -> Any:
    """A state of this kind, with the structure of a vector wherever one or a basis stands."""
    basis = bases.Basis((structure,) * parts) if parts else structure
    inside = {"basis": basis, "vector": structure, "residual": structure}
    if "run" in kind._fields:
        inside["run"] = _template(krylov.Krylov, structure, parts)
    return kind(**{name: inside.get(name, 0) for name in kind._fields})
