"""Measuring a checkpoint that is already there, by the quickstart's table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from experiments.lib.lab import Runs
from experiments.lib.runs.arrays import checksum
from experiments.lib.runs.errors import CheckpointMismatch
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.paths import as_path
from experiments.lib.training import recipes
from experiments.lib.training.curvature import NUMBERS, Curvature, run_of
from experiments.lib.training.load import load_checkpoint

if TYPE_CHECKING:
    from experiments.quickstart import Config


def folder(config: Config) -> Path:
    """Where the measurements of a checkpoint lie: by its last two names, step and run."""
    names = [n for n in as_path(config.checkpoint).parts if n not in (".", "..", "/")][-2:]
    words = [str(word) for word in (config.step, config.which) if word]
    return as_path(config.out) / "-".join(["checkpoint", *names, *words])


def measured(config: Config, out: Path) -> Runs:
    """The numbers of the checkpoint, as of one seed and one point."""
    loaded = load_checkpoint(config.checkpoint, step=config.step, which=config.which)
    state, recipe = (loaded.params, loaded.model_state), config.recipe
    data = run_of(config.load(), 0)
    _require_fit(config, state, data, loaded.path)

    def measure() -> dict[str, Any]:
        curvature = Curvature(recipe, data, config.curvature)
        on_train = recipes.logits(recipe, *state, data.inputs)
        found = recipes.accuracies(recipe, *state, data, on_train)
        return found | curvature.everything(*state)

    # By the bits of the arrays: another network may come to lie at the same path.
    found = kept_arrays(out / f"curvature_{int(checksum(state)):08x}.npz", measure)
    along = {name for name, values in found.items() if name in NUMBERS or not values.ndim}
    runs = {name: a[None, None] if name in along else a[None] for name, a in found.items()}
    return {"checkpoint": runs}


def _require_fit(config: Config, state: Any, data: Any, path: Path) -> None:
    """Compares a checkpoint with the network and the data.

    Raises:
      CheckpointMismatch: they are of other shapes; the message has the differences.
    """
    recipe = config.recipe
    network = recipes.network(recipe)
    wanted = _shapes(jax.eval_shape(network.init, jax.random.key(0), data.inputs[:1]))
    found = _shapes(state)
    differences = [
        f"{name} of shape {found.get(name, 'none')} where it has {wanted.get(name, 'none')}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if differences:
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise CheckpointMismatch(
            f"{path} does not fit the network {recipe.network!r} on {config.data!r}: "
            f"{'; '.join(differences[:4])}{more}; say which network it is by --network and "
            "--recipe.classes, and which data by --data"
        )
    largest = max(data.targets.max(), data.test_targets.max())
    if largest >= recipe.classes:
        raise CheckpointMismatch(
            f"{path} has {recipe.classes} outputs and {config.data!r} the label {largest}: say "
            "which data it belongs to by --data"
        )


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path[1:], simple=True, separator="/"): leaf.shape
        for path, leaf in leaves
    }
