"""One of each thing that experiments do besides `train`, as pieces of work."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.runs.kept import each_seed, kept_arrays
from experiments.lib.runs.shares import shared
from experiments.lib.runs.trajectory import run_chunks
from experiments.lib.verdicts.claims import Claim, judge
from experiments.lib.verdicts.figures import figure
from experiments.lib.verdicts.summary import Figure, run_folder, write_summary
from experiments.registry import Experiment, Options

ARMS = ("slow", "fast", "faster")
STEPS = 8
CLAIM = Claim(name="falls", statement="Falls.", paper="None", high=1.0, reason="It falls.")


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """A descent on a quadratic, several times over."""

    seeds: int = 3
    first_seed: int = 0


@functools.partial(jax.jit, static_argnums=1)
def _descend(state, steps):
    def step(state, _):
        x = state["x"] * (1 - state["rate"])
        return {**state, "x": x}, {"loss": jnp.square(x).sum()}

    return jax.lax.scan(step, state, length=steps)


def run_arm(folder, rate):
    state = {"x": jnp.arange(3.0), "rate": jnp.float32(rate)}
    return run_chunks(folder, state, _descend, STEPS, 2)[1]["loss"]


def main(config):
    with run_folder(config) as out:
        seeds = each_seed(config, lambda seed, folder: {"value": run_arm(folder, 0.1)[seed]})
        arms = {
            arm: functools.partial(run_arm, out / arm, 0.1 * number)
            for number, arm in enumerate(ARMS)
        }
        found = shared(config, {**seeds, **arms})
        last = run_arm(out / "together", 0.05)
        losses = {arm: found[arm] for arm in ARMS}
        kept = kept_arrays(
            out / "kept.npz", lambda: {"last": last[-1:], "arms": np.stack([*losses.values()])}
        )
        with figure(out / "losses.png") as axes:
            axes.plot(kept["arms"].T)
        values = {seed: found[seed]["value"] for seed in seeds}
        extra = {"last": kept["last"], "arms": losses}
        write_summary(out, config, [judge(CLAIM, values)], [Figure("losses.png", "Loss.")], extra)


EXPERIMENT = Experiment(main=main, presets={"smoke": Config()}, shares=True)
