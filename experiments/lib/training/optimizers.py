"""Optimisers from a configuration, as optax chains."""

from __future__ import annotations

import optax

from experiments.lib.training.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The learning rate as a function of the number of updates done."""
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = max(total_steps - warmup, 1)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest)
    elif config.schedule == "steps":
        main = optax.piecewise_constant_schedule(peak, {rest // 2: 0.1, 3 * rest // 4: 0.1})
    elif config.schedule == "constant":
        main = optax.constant_schedule(peak)
    else:
        raise ValueError(f"unknown schedule {config.schedule!r}; choose constant, cosine or steps")
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup])


def make_optimizer(
    config: OptimizerConfig, total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Builds the chain: sam sees the raw gradient first, the learning rate comes last.

    The optimiser is wrapped by `optax.inject_hyperparams`, so that its state tells the learning
    rate, and for Adam b1, b2 and eps, to whoever measures preconditioned sharpness.
    """
    parts: list[optax.GradientTransformation] = []
    if config.sam_rho is not None:
        from flatjax.transforms._sam import sam

        parts.append(sam(rho=config.sam_rho))
    if config.clip is not None:
        parts.append(optax.clip_by_global_norm(config.clip))
    if config.weight_decay and config.name != "adamw":
        parts.append(optax.add_decayed_weights(config.weight_decay))
    rate = make_schedule(config, total_steps)
    if config.schedule == "constant" and not config.warmup_steps:
        rate = config.learning_rate
    parts.append(_base(config, rate))
    return optax.with_extra_args_support(optax.chain(*parts))


def _base(config: OptimizerConfig, rate) -> optax.GradientTransformation:
    moments = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    if config.name in ("sgd", "nesterov"):
        nesterov = config.name == "nesterov"
        # momentum=None, not 0.0: no buffer is kept where none is used.
        momentum = config.momentum or None
        make = optax.inject_hyperparams(optax.sgd, static_args=("nesterov",))
        return make(learning_rate=rate, momentum=momentum, nesterov=nesterov)
    if config.name == "adam":
        return optax.inject_hyperparams(optax.adam)(learning_rate=rate, **moments)
    if config.name == "adamw":
        make = optax.inject_hyperparams(optax.adamw)
        return make(learning_rate=rate, weight_decay=config.weight_decay, **moments)
    if config.name == "rmsprop":
        make = optax.inject_hyperparams(optax.rmsprop)
        return make(learning_rate=rate, decay=config.b2, eps=config.eps)
    raise ValueError(
        f"unknown optimiser {config.name!r}; choose sgd, nesterov, adam, adamw or rmsprop"
    )
