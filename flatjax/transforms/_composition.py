"""Making transforms of different manners live in one chain."""

import optax


def drop_extra_args(
    transform: optax.GradientTransformation, *names: str
) -> optax.GradientTransformationExtraArgs:
    """Keep the named extra arguments from a transform that cannot take them.

    The line searches of optax pass every extra argument on to ``value_fn`` and raise on one that it
    does not consume, so ``grad_fn=`` for SAM and a line search cannot share a chain as they are.

    Args:
      transform: the transform to protect.
      *names: the extra arguments to drop; default ``grad_fn``, ``batch`` and ``args``.

    Returns:
      The transform without them.

    Example:
      >>> import flatjax, optax
      >>> tx = optax.chain(
      ...     flatjax.sam(0.05),
      ...     optax.sgd(1.0),
      ...     flatjax.transforms.drop_extra_args(optax.scale_by_backtracking_linesearch(10)),
      ... )
    """
    dropped = names or ("grad_fn", "batch", "args")
    inner = optax.with_extra_args_support(transform)

    def update(updates, state, params=None, **extra):
        kept = {name: value for name, value in extra.items() if name not in dropped}
        return inner.update(updates, state, params, **kept)

    return optax.GradientTransformationExtraArgs(inner.init, update)
