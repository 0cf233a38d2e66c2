"""Reading the preconditioner out of an optax state."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from flatjax import _loops as loops
from flatjax import _trees as trees

Get = Callable[[str], Any]


def preconditioner(
    opt_state: Any,
    *,
    b1: ArrayLike | None = None,
    b2: ArrayLike | None = None,
    eps: ArrayLike | None = None,
    eps_root: ArrayLike | None = None,
    eps_in_sqrt: bool = True,
    params: Any = None,
) -> Any:
    r"""The diagonal preconditioner D of an optax state.

    The state is looked for anywhere inside ``optax.chain``, ``inject_hyperparams``, ``masked``,
    ``MultiSteps``, ``apply_if_finite`` and ``multi_transform`` (``partition``):

    - Adam, AdamW, NAdam and other users of ``scale_by_adam``:
      $D = (1 - \beta_1^t)\,(\sqrt{\hat\nu + \epsilon_{root}} + \epsilon)$ with
      $\hat\nu = \nu / (1 - \beta_2^t)$ (Cohen et al. 2022, arXiv:2207.14484); the first factor is
      the bias correction of the momentum. AMSGrad and AdaBelief likewise, with their own second
      moments.
    - RMSprop: $D = \sqrt{\nu + \epsilon}$, or $\sqrt\nu + \epsilon$ with ``eps_in_sqrt=False``;
      centred, $\nu - \mu^2$ takes the place of $\nu$.
    - Adagrad: $D = \sqrt{s + \epsilon}$; ``inf`` where no gradient was ever seen, because optax
      does not move such an entry.
    - SGD, with momentum or without: $D = 1$.

    optax states do not hold $\beta_1$, $\beta_2$ and $\epsilon$. Each is taken from the argument,
    else from an enclosing ``inject_hyperparams``, else it is an error. The learning rate is no part
    of D; where groups of params have different ones, divide their parts of D by the ratios.
    Adamax, Yogi and LAMB keep the same type of state as Adam and divide by something else: their
    states cannot be told apart and are read as Adam's.

    Args:
      opt_state: the state of an optax optimiser; concrete or traced.
      b1: decay of the first moment.
      b2: decay of the second moment; RMSprop's ``decay`` (used with bias correction only).
      eps: the constant in the denominator.
      eps_root: Adam's constant under the root, 0 if it is nowhere given.
      eps_in_sqrt: RMSprop's flag of the same name (a flag is not an injected hyperparameter).
      params: the params. Needed for SGD without momentum, and where the state covers only a part
        of them; the others get 1, the preconditioner of a plain gradient step.

    Returns:
      A tree like the params, of dtype at least float32.

    Raises:
      TypeError: if the state belongs to an optimiser with a preconditioner that is not diagonal or
        not known here.
      ValueError: if no step has been taken, a hyperparameter is missing, the state is partial and
        ``params`` is missing, or two preconditioners act on one leaf.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import flatjax
      >>> params = jnp.array([1.0, 1.0])
      >>> optimizer = optax.inject_hyperparams(optax.adam)(1e-3, b1=0.0)
      >>> state = optimizer.init(params)
      >>> _, state = optimizer.update(jnp.array([3.0, 4.0]), state, params)
      >>> flatjax.preconditioner(state).round(3).tolist()  # after one step, |g|
      [3.0, 4.0]
    """
    given = {"b1": b1, "b2": b2, "decay": b2, "eps": eps, "eps_root": eps_root}
    given = {name: value for name, value in given.items() if value is not None}
    given["eps_in_sqrt"] = eps_in_sqrt
    found, momenta = [], []
    for state, injected in _walk(opt_state, {"eps_root": 0.0}):
        name = type(state).__name__
        if name == "TraceState":
            momenta.append(_ones(state.trace))
        else:
            found.append(_READERS[name](state, _getter(name, {**injected, **given})))
    return _merged(found or momenta, params)


def _walk(state: Any, injected: dict) -> Iterator[tuple[Any, dict]]:
    """Every state that says something of D, with the hyperparameters injected around it."""
    name = type(state).__name__
    if name in _READERS or name == "TraceState":
        yield state, injected
        return
    if name.startswith(("ScaleBy", "Factored")) and name != "ScaleByScheduleState":
        raise TypeError(
            f"{name} has no preconditioner that is known here: pass your own diagonal to "
            "flatjax.preconditioned."
        )
    injected = {**injected, **getattr(state, "hyperparams", {})}
    children = state.values() if isinstance(state, dict) else state
    for child in children if isinstance(state, (tuple, list, dict)) else ():
        yield from _walk(child, injected)


def _getter(state_name: str, values: dict) -> Get:
    def get(name):
        if name in values:
            return values[name]
        raise ValueError(
            f"{state_name} does not hold {name}, and no inject_hyperparams around it does: pass "
            f"{'b2' if name == 'decay' else name}=, the value the optimiser was made with."
        )

    return get


def _correction(decay, state):
    """The bias correction of a moment after the steps that were taken."""
    if not loops.is_traced(state.count) and int(state.count) == 0:
        raise ValueError("the optimiser has taken no step yet, so it has no preconditioner.")
    return 1 - decay ** jnp.maximum(state.count, 1)


def _leaves(fn, *moments):
    """Map over the leaves of moments, in at least float32 whatever the hyperparameters are."""

    def leaf(*arrays):
        dtype = trees.compute_dtype(arrays[0].dtype)
        with jax.numpy_dtype_promotion("standard"):
            return fn(*(a.astype(dtype) for a in arrays)).astype(dtype)

    return jax.tree.map(leaf, *moments)


def _adam(state, get):
    b1, b2, eps, root = get("b1"), get("b2"), get("eps"), get("eps_root")
    if type(state).__name__ == "ScaleByBeliefState":
        root = 0.0  # already in the moment that the state keeps

    def leaf(nu):
        return _correction(b1, state) * (jnp.sqrt(nu / _correction(b2, state) + root) + eps)

    return _leaves(leaf, state.nu)


def _amsgrad(state, get):
    b1, eps, root = get("b1"), get("eps"), get("eps_root")
    return _leaves(lambda nu: _correction(b1, state) * (jnp.sqrt(nu + root) + eps), state.nu_max)


def _rms(state, get):
    eps, inside = get("eps"), get("eps_in_sqrt")

    def leaf(nu, mu):
        if "count" in state._fields:  # every tuple has a *method* of that name
            nu, mu = (a / _correction(get("decay"), state) for a in (nu, mu))
        square = nu - mu**2
        return jnp.sqrt(square + eps) if inside else jnp.sqrt(square) + eps

    mu = state.mu if "mu" in state._fields else jax.tree.map(jnp.zeros_like, state.nu)
    return _leaves(leaf, state.nu, mu)


def _adagrad(state, get):
    eps = get("eps")
    return _leaves(lambda s: jnp.where(s > 0, jnp.sqrt(s + eps), jnp.inf), state.sum_of_squares)


# A reader turns a state into D; `MaskedNode`s have no leaves and so pass through. By name, because
# optax does not export all of the types.
_READERS: dict[str, Callable[[Any, Get], Any]] = {
    "ScaleByAdamState": _adam,
    "ScaleByAmsgradState": _amsgrad,
    "ScaleByBeliefState": _adam,
    "ScaleByRmsState": _rms,
    "ScaleByRmsWithCountState": _rms,
    "ScaleByRStdDevState": _rms,
    "ScaleByRStdDevWithCountState": _rms,
    "ScaleByRssState": _adagrad,
}


def _ones(tree):
    return jax.tree.map(lambda a: jnp.ones(a.shape, trees.compute_dtype(a.dtype)), tree)


def _merged(found: list, params: Any) -> Any:
    """One tree out of the diagonals of groups of params."""
    if params is None:
        if not found:
            raise ValueError(
                "opt_state holds no statistics: for SGD without momentum pass params=, and its "
                "preconditioner is 1."
            )
        is_masked = lambda a: isinstance(a, optax.MaskedNode)  # noqa: E731
        if len(found) > 1 or any(map(is_masked, jax.tree.leaves(found, is_leaf=is_masked))):
            raise ValueError("the state covers a part of the params only: pass params=.")
        return found[0]
    merged, treedef = jax.tree_util.tree_flatten_with_path(_ones(params))
    by_path: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        name = jax.tree_util.keystr(path[1:])
        if name in by_path:
            raise ValueError(f"two preconditioners act on params{name}: pass one state.")
        by_path[name] = leaf
    leaves = [by_path.pop(jax.tree_util.keystr(path), one) for path, one in merged]
    if by_path:
        raise ValueError(f"the state has leaves that params lacks: {sorted(by_path)}.")
    return treedef.unflatten(leaves)
