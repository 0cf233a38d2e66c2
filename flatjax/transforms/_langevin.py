"""Langevin dynamics: sample from the posterior instead of minimising."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.transforms import _base as base
from flatjax.transforms import _means as means
from flatjax.transforms import _prng as prng


@reading.readable
class LangevinState(NamedTuple):
    """State of [`langevin`][].

    Attributes:
      count: the number of updates.
      key: the key, folded with ``count`` for each draw, as integers (``jax.random.key_data``).
      velocity: the velocity; ``()`` without ``friction``.
      second_moment: the moving average of squared mean gradients; ``()`` without a preconditioner.
    """

    count: jax.Array
    key: Any
    velocity: Any
    second_moment: Any


def langevin(
    learning_rate: base.Scalar,
    *,
    num_data: base.Number,
    temperature: base.Scalar = 1.0,
    prior_precision: base.Scalar = 0.0,
    friction: base.Number | None = None,
    preconditioner: str | None = None,
    decay: base.Number = 0.99,
    eps: base.Number = 1e-5,
    seed: Any = 0,
    axis_name: collectives.AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic-gradient Langevin dynamics: a whole optimiser.

    With the potential $U = N \cdot L + \frac\tau2 \lVert w \rVert^2$, where $L$ is the *mean* loss
    over $N$ = ``num_data`` examples (a negative log-likelihood) and $\tau$ = ``prior_precision``,
    so that $\exp(-U)$ is the posterior up to a constant, and fresh $\xi \sim \mathcal N(0, I)$:

    - SGLD: $w \leftarrow w - \eta \nabla U + \sqrt{2 \eta T}\,\xi$. For small $\eta$ it samples
      $\exp(-U / T)$. The paper's step size is $\epsilon = 2 \eta$. A learning rate $\alpha$ tuned
      for the mean loss is $\eta = \alpha / N$.
    - ``friction`` = $\alpha$ in (0, 1] (SGHMC, equation 15 of the paper): $v \leftarrow (1 -
      \alpha) v - \eta \nabla U + \sqrt{2 \alpha \eta T}\,\xi$, $w \leftarrow w + v$; underdamped,
      $1 - \alpha$ is the momentum; ``friction=1`` is SGLD.
    - ``preconditioner="rms"`` (pSGLD): $G = 1 / (\sqrt V + \lambda)$ with $V$ a
      moving average of the squared *mean* gradients; $w \leftarrow w - \eta G \nabla U + \sqrt{2
      \eta T G}\,\xi$. The term in the derivative of $G$ is left out, as in the paper's practice.

    Hand in the gradient of the mean loss, as for any optimiser; put nothing that rescales it
    before. Cost: 1 gradient; a copy of the params each for friction and preconditioner.

    Args:
      learning_rate: $\eta$, a number or a schedule.
      num_data: $N$; 1 if the loss is already the potential.
      temperature: $T$; 0 is gradient descent on $U$.
      prior_precision: $\tau$ of a Gaussian prior around zero; 0 for a flat one.
      friction: $\alpha$, or ``None`` for the overdamped dynamics.
      preconditioner: ``None`` or ``"rms"``.
      decay: of $V$.
      eps: $\lambda$.
      seed: of the noise; the key lives in the state.
      axis_name: inside ``shard_map`` or ``pmap``, the axes of the batch; the noise is shared.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state [`LangevinState`][].

    Raises:
      ValueError: for a negative rate, temperature or precision, ``num_data`` <= 0, ``friction``
        outside (0, 1], an unknown preconditioner or one together with ``friction``.

    Example:
      >>> import flatjax, jax, jax.numpy as jnp, optax
      >>> tx = flatjax.langevin(0.1, num_data=1, temperature=0.0)
      >>> w = jnp.array([1.0])
      >>> updates, state = tx.update(jax.grad(lambda w: jnp.sum(w**2) / 2)(w), tx.init(w), w)
      >>> updates.round(3).tolist()
      [-0.100]

    References:
      Welling and Teh, "Bayesian Learning via Stochastic Gradient Langevin Dynamics", ICML 2011
      (SGLD); Chen, Fox and Guestrin, "Stochastic Gradient Hamiltonian Monte Carlo", ICML 2014
      (SGHMC); Li et al., "Preconditioned Stochastic Gradient Langevin Dynamics for Deep Neural
      Networks", AAAI 2016.
    """
    checks.check_scalar("learning_rate", learning_rate, minimum=0.0, schedule=True)
    checks.check_scalar("num_data", num_data, above=0.0, schedule=True)
    checks.check_scalar("temperature", temperature, minimum=0.0, schedule=True)
    checks.check_scalar("prior_precision", prior_precision, minimum=0.0, schedule=True)
    checks.check_scalar("decay", decay, minimum=0.0, below=1.0, schedule=True)
    checks.check_scalar("eps", eps, above=0.0, schedule=True)
    if friction is not None:
        checks.check_scalar("friction", friction, above=0.0, maximum=1.0, schedule=True)
    checks.check_choice("preconditioner", preconditioner, (None, "rms"))
    if preconditioner is not None and friction is not None:
        raise ValueError("langevin takes friction or a preconditioner, not both.")

    def init(params):
        zeros = trees.zeros(trees.structure_of(params))
        return LangevinState(
            base.start(),
            prng.initial(seed),
            () if friction is None else zeros,
            () if preconditioner is None else zeros,
        )

    def update(updates, state, params=None, **extra):
        del extra
        base.require_params("langevin", params)
        scalar = trees.dtype(params)
        wide = trees.structure_of(params)
        eta, heat, tau = (
            base.at(a, state.count, scalar) for a in (learning_rate, temperature, prior_precision)
        )
        mean = trees.cast(means.average(updates, axis_name), wide)
        data = base.at(num_data, state.count, scalar)
        force = base.combine(data, mean, tau, trees.cast(params, wide))
        xi = prng.normal_like(prng.of_step(state.key, state.count), params)

        velocity, moment = state.velocity, state.second_moment
        if preconditioner == "rms":
            beta = base.at(decay, state.count, scalar)
            moment = base.combine(beta, moment, 1 - beta, jax.tree.map(jnp.square, mean))
            gain = jax.tree.map(
                lambda v: 1 / (jnp.sqrt(v) + jnp.asarray(eps).astype(v.dtype)), moment
            )
            step = base.combine(
                -eta, jax.tree.map(jnp.multiply, gain, force), jnp.sqrt(2 * eta * heat),
                jax.tree.map(lambda a, z: jnp.sqrt(a) * z, gain, xi),
            )  # fmt: skip
        elif friction is not None:
            alpha = base.at(friction, state.count, scalar)
            kick = base.combine(-eta, force, jnp.sqrt(2 * alpha * eta * heat), xi)
            step = velocity = base.combine(1 - alpha, velocity, 1.0, kick)
        else:
            step = base.combine(-eta, force, jnp.sqrt(2 * eta * heat), xi)
        kept = base.if_finite(force, (velocity, moment), (state.velocity, state.second_moment))
        new = LangevinState(base.advance(state.count), state.key, *kept)
        return trees.cast(step, params), new

    return optax.GradientTransformationExtraArgs(init, update)
