"""A small training run, measured along the way, for one process or several to share."""

import resource
import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from experiments.lib.data.images import DataConfig, load_data
from experiments.lib.nets.config import ModelConfig
from experiments.lib.nets.models import make_model
from experiments.lib.training.config import OptimizerConfig, RunConfig, TrainConfig
from experiments.lib.training.measurements import Measurement
from experiments.lib.training.train import train
from experiments.registry import Experiment, Options
from flatjax import parallel

STEPS = 24


def small() -> RunConfig:
    """Smooth and stable, so that rounding stays rounding."""
    return RunConfig(
        data=DataConfig(train_size=96, test_size=32),
        model=ModelConfig(name="mlp", width=16, depth=1, norm="none", activation="tanh"),
        train=TrainConfig(
            steps=STEPS,
            batch_size=16,
            log_every=4,
            eval_every=8,
            checkpoint_every=4,
            tensorboard=False,
            optimizer=OptimizerConfig(name="sgd", learning_rate=0.05, momentum=0.5),
        ),
    )


def curvature(config: RunConfig) -> Measurement:
    """The curvature of the whole training loss along its gradient.

    Each process brings its own share of the data. The direction is carried along, for something to
    be in the checkpoint.
    """
    data = load_data(config.data)
    model = make_model(config.model, data.num_classes)

    def loss_fn(params, batch):
        return flatjax.softmax_cross_entropy(model.model_fn(params, batch[0], {}), batch[1])

    @jax.jit
    def measured(params, batch, weights, carry):
        H = flatjax.hessian(loss_fn, params, batch, weights=weights)
        gradient = jax.grad(lambda p: (loss_fn(p, batch) * weights).sum() / weights.sum())(params)
        direction = jax.tree.map(lambda c, g: 0.5 * c + g, carry, gradient)
        along = flatjax._trees.vdot(direction, H.mv(direction))
        return along / flatjax._trees.vdot(direction, direction), direction

    def measure(snapshot, carry):
        arrays = data.train.arrays()
        share = np.array_split(np.arange(96), jax.process_count())[jax.process_index()]
        batch = parallel.shard_batch(
            (arrays.inputs[share], arrays.targets[share]), parallel.make_mesh()
        )
        value, carry = measured(snapshot.params, *batch, carry)
        return {"curvature": value}, carry

    zeros = lambda snapshot: jax.tree.map(jnp.zeros_like, snapshot.params)  # noqa: E731
    return Measurement("curvature", measure, every=8, init=zeros)


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """A small training run."""

    run: RunConfig = field(default_factory=small)
    """The run."""

    pause: float = field(default=0.0, metadata={"identity": False})
    """Seconds to wait at every second step, for others to disturb this process meanwhile."""

    full_at: int | None = field(default=None, metadata={"identity": False})
    """The step, an even one, from which on the disk is full."""


def main(config: Config) -> None:
    def wait(snapshot, carry):
        time.sleep(config.pause)
        if snapshot.step == config.full_at:
            # From now on no file can grow beyond this: what a full disk does, without being root.
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        return {}, carry

    measurements = [Measurement("pause", wait, every=2), curvature(config.run)]
    result = train(config.out, config.run, measurements=measurements, quiet=config.quiet)
    assert result.step == STEPS


EXPERIMENT = Experiment(main=main, presets={"smoke": Config()}, data_parallel=True)
