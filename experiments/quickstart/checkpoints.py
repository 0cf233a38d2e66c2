"""Measuring a checkpoint that is already there, by the quickstart's table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from experiments.lib.lab import Runs, changed, with_network
from experiments.lib.nets import named
from experiments.lib.nets.dense_layers import (
    all_dense,
    dense_layers,
    linen_widths,
    renamed,
    widths,
)
from experiments.lib.runs.arrays import checksum
from experiments.lib.runs.errors import CheckpointMismatch
from experiments.lib.runs.kept import kept_arrays
from experiments.lib.runs.paths import as_path
from experiments.lib.runs.progress import say
from experiments.lib.training import recipes
from experiments.lib.training.curvature import NUMBERS, Curvature, run_of
from experiments.lib.training.load import Loaded, load_checkpoint

if TYPE_CHECKING:
    from experiments.quickstart import Config


def folder(config: Config) -> Path:
    """Where the measurements of a checkpoint lie: by its last two names, step and run."""
    names = [n for n in as_path(config.checkpoint).parts if n not in (".", "..", "/")][-2:]
    words = [str(word) for word in (config.step, config.which) if word]
    return as_path(config.out) / "-".join(["checkpoint", *names, *words])


def fitted(config: Config) -> Config:
    """The options with the network of the checkpoint: an MLP has its width and depth from there.

    `mlp` takes the dense layers of any file, whatever they are called; `mlp-tanh`, `mlp-batch` and
    the like those called `Dense_0` and so on and `head`. A name with numbers is left as it is.
    """
    config = with_network(config)
    recipe = config.recipe
    kind, *words = recipe.network.split("-")
    if kind != "mlp" or any(word.isdecimal() for word in words):
        return config
    params = _load(config).params
    if recipe.flat:
        layers = dense_layers(params)
        hidden = None if layers is None else widths(layers)
        activation = f"{recipe.activation} (see --recipe.activation)"
    else:
        hidden = linen_widths(params)
        activation = named.parsed(recipe.network).activation or "relu (or say --network mlp-tanh)"
    if hidden is None:
        return config
    sizes = ", ".join(map(str, hidden)) or "no"
    say(
        f"the checkpoint is an MLP of {sizes} hidden units; not in it: its activation, {activation}"
    )
    if recipe.flat:
        return changed(config, {"recipe": {"hidden": hidden}})
    name = "-".join(["mlp", f"{len(hidden)}-{hidden[0]}", *words])
    return changed(config, {"recipe": {"network": name}})


def _load(config: Config) -> Loaded:
    return load_checkpoint(config.checkpoint, step=config.step, which=config.which)


def measured(config: Config, out: Path) -> Runs:
    """The numbers of the checkpoint, as of one seed and one point."""
    loaded, recipe = _load(config), config.recipe
    params, layers = loaded.params, dense_layers(loaded.params)
    if recipe.flat and layers is not None:
        params = renamed(layers)
    state = (params, loaded.model_state)
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
      CheckpointMismatch: they are of other shapes; the message has all differences.
    """
    recipe = config.recipe
    network = recipes.network(recipe)
    wanted = _shapes(jax.eval_shape(network.init, jax.random.key(0), data.inputs[:1]))
    found = _shapes(state)
    differences = [
        f"{name} of shape {found[name]} where it has {wanted.get(name, 'none')}"
        if name in found
        else f"no {name} where it has {wanted[name]}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if differences:
        listed = "\n".join(f"  {difference}" for difference in differences)
        dense = dense_layers(state[0]) is not None
        hint = ""
        if dense and not recipe.flat:
            hint = "\nThese are dense layers one behind the other, which --network mlp takes."
        elif recipe.flat and not dense and all_dense(state[0]):
            hint = (
                f"\nIn which order its layers {', '.join(state[0])} stand, neither their names nor "
                "their shapes tell: call them layer_0, layer_1, ..."
            )
        elif recipe.flat and not dense:
            hint = "\nmlp takes dense layers alone, with kernels and biases, one behind the other."
        raise CheckpointMismatch(
            f"{path} does not fit the network {recipe.network!r} on {config.data!r}:\n{listed}\n"
            "Say which network it is by --network (a name, or module:function) and "
            f"--recipe.classes, and which data by --data.{hint}"
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
