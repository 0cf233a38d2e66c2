"""One of each thing that experiments do besides `train`, for one process or several to share."""

import functools
import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.runs.kept import each_seed, kept_arrays
from experiments.lib.runs.shares import shared
from experiments.lib.runs.trajectory import run_chunks
from experiments.lib.verdicts.claims import Claim, judge
from experiments.lib.verdicts.figures import figure
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, ExperimentConfig

ARMS = ("slow", "fast", "faster")
STEPS = 8
CLAIM = Claim(name="falls", statement="Falls.", paper="None", high=1.0, reason="It falls.")


@dataclass(frozen=True, kw_only=True)
class Config(ExperimentConfig):
    """A descent on a quadratic, several times over."""

    seeds: int = 3

    slow_at: str = field(default="", metadata={"identity": False})
    """The folder where every chunk takes a second, for others to disturb this process meanwhile."""


@functools.partial(jax.jit, static_argnums=1)
def _descend(state, steps):
    def step(state, _):
        x = state["x"] * (1 - state["rate"])
        return {**state, "x": x}, {"loss": jnp.square(x).sum()}

    return jax.lax.scan(step, state, length=steps)


def run_arm(config, folder, rate):
    def advance(state, steps):
        time.sleep(folder.name == config.slow_at)
        return _descend(state, steps)

    state = {"x": jnp.arange(3.0), "rate": jnp.float32(rate)}
    return run_chunks(folder, state, advance, STEPS, 2)[1]["loss"]


def main(config):
    with run_folder(config) as out:
        seeds = each_seed(
            config, lambda seed, folder: {"value": run_arm(config, folder, 0.1)[seed]}
        )
        arms = shared(
            {
                arm: functools.partial(run_arm, config, out / arm, 0.1 * number)
                for number, arm in enumerate(ARMS)
            }
        )
        last = run_arm(config, out / "together", 0.05)
        kept = kept_arrays(
            out / "kept.npz", lambda: {"last": last[-1:], "arms": np.stack([*arms.values()])}
        )
        with figure(out / "losses.png") as axes:
            axes.plot(kept["arms"].T)
        values = {seed: result["value"] for seed, result in seeds.items()}
        extra = {"last": kept["last"], "arms": arms}
        write_summary(out, config, [judge(CLAIM, values)], [Figure("losses.png", "Loss.")], extra)


EXPERIMENT = Experiment(main=main, presets={"smoke": Config()})
