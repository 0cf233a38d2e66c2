"""How sharp a minimum an optimiser can stand, for its learning rate."""

from typing import Any

from jax.typing import ArrayLike

from flatjax import _checks as checks

_MOMENTUM = {"heavy_ball", "nesterov", "rmsprop"}
_EMA = {"adam", "nadam"}
_ALIASES = {
    "sgd": "gd",
    "momentum": "heavy_ball",
    "polyak": "heavy_ball",
    "adamw": "adam",
    "amsgrad": "adam",
    "nadamw": "nadam",
}


def stability_threshold(
    kind: str,
    learning_rate: ArrayLike | None = None,
    *,
    momentum: ArrayLike | None = None,
    b1: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
    opt_state: Any = None,
) -> Any:
    r"""The eigenvalue above which full-batch training oscillates with growing amplitude.

    Along an eigenvector of the (preconditioned) Hessian with eigenvalue $\lambda$ an optimiser with
    a frozen preconditioner is a linear recursion. It is stable up to

    - ``"gd"``: $\lambda_1(H) = 2/\eta$;
    - ``"heavy_ball"``: $\lambda_1(H) = (2 + 2\beta)/\eta$;
    - ``"nesterov"``: $\lambda_1(H) = (2 + 2\beta)/((1 + 2\beta)\,\eta)$;
    - ``"adam"``: $\lambda_1(D^{-1/2} H D^{-1/2}) = (2 + 2\beta_1)/((1 - \beta_1)\,\eta)$;
    - ``"nadam"``: likewise $(2 + 2\beta_1)/((1 - \beta_1)(1 + 2\beta_1)\,\eta)$;
    - ``"rmsprop"``: likewise $(2 + 2\beta)/\eta$;
    - ``"adagrad"``: likewise $2/\eta$.

    (Cohen et al. 2021, arXiv:2103.00065, for the first three; 2022, arXiv:2207.14484, for Adam,
    38/η at $\beta_1 = 0.9$; NAdam is the Nesterov recursion with step $(1 - \beta_1)\eta$.)
    Decoupled weight decay $w$ replaces $2/\eta$ by $2/\eta - w$; an L2 penalty in the loss is part
    of the Hessian instead. Full-batch training settles near the threshold (the edge of stability);
    for minibatches it is an upper bound.

    Args:
      kind: the optimiser; also ``"sgd"``, ``"momentum"``, ``"polyak"``, ``"adamw"``, ``"amsgrad"``
        and ``"nadamw"``.
      learning_rate: the step size $\eta$ of this moment; positive.
      momentum: $\beta$ of heavy ball, Nesterov, or RMSprop with momentum (default there 0).
      b1: $\beta_1$ of the Adam family.
      weight_decay: decoupled weight decay (AdamW), per unit of learning rate.
      opt_state: an optax state with ``inject_hyperparams`` inside, from which ``learning_rate``,
        ``momentum`` and ``b1`` are read where they are not given.

    Returns:
      The threshold, in the units of an eigenvalue: a float, or an array if an argument is one.

    Raises:
      ValueError: for an unknown kind, a missing or superfluous hyperparameter, or one out of range.

    Example:
      >>> import flatjax
      >>> flatjax.stability_threshold("gd", 0.1)
      20.0
      >>> round(flatjax.stability_threshold("adam", 1e-3, b1=0.9))
      38000
    """
    kind = _ALIASES.get(kind, kind)
    known = sorted({"gd", "adagrad"} | _MOMENTUM | _EMA | set(_ALIASES))
    checks.check_choice("kind", kind, known)
    if momentum is not None and kind not in _MOMENTUM:
        of_gd = ': with momentum it is "heavy_ball".' if kind == "gd" else "."
        raise ValueError(f"{kind} has no momentum=" + (": pass b1=." if kind in _EMA else of_gd))
    if b1 is not None and kind not in _EMA:
        raise ValueError(f"{kind} has no b1=: pass momentum=, if it has momentum.")
    injected = _injected(opt_state)
    if kind == "rmsprop":
        injected = {"momentum": 0.0, **injected}
    eta, beta = _value("learning_rate", learning_rate, injected), 0.0
    if kind in _MOMENTUM:
        beta = _value("momentum", momentum, injected)
    elif kind in _EMA:
        beta = _value("b1", b1, injected)
    checks.check_scalar("learning_rate", eta, above=0)
    checks.check_scalar("momentum or b1", beta, minimum=0, below=1)
    checks.check_scalar("weight_decay", weight_decay, minimum=0)
    threshold = (1 + beta) * (2 / eta - weight_decay)
    if kind in {"nesterov", "nadam"}:
        threshold = threshold / (1 + 2 * beta)
    return threshold / (1 - beta) if kind in _EMA else threshold


def _injected(state: Any) -> dict:
    """The hyperparameters of every ``inject_hyperparams`` inside a state."""
    found = dict(getattr(state, "hyperparams", {}))
    children = state.values() if isinstance(state, dict) else state
    if isinstance(state, (tuple, list, dict)):
        for child in children:
            found |= _injected(child)
    return found


def _value(name, given, injected):
    value = given if given is not None else injected.get(name)
    if value is None:
        raise ValueError(
            f"the threshold needs {name}: pass it, or an opt_state made with "
            "optax.inject_hyperparams, which holds it."
        )
    return value
