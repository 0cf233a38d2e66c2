"""Further tasks of the shape of the data: as many examples, inputs as large, no more classes.

teacher     random vectors, labelled by a network of two layers
views       random vectors of two classes with two patterns, of which many have one alone
            (Li et al. 2019); tested on the first alone
patches     the images, four of five with a patch of their class; tested without
wrong-40    the data with 40 % wrong labels
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

from experiments.lib.data.patches import add_patches, make_patches
from experiments.lib.data.small import SmallData, small_data, stack_seeds
from experiments.lib.data.teacher import taught
from experiments.lib.data.views import draw_views, make_directions
from experiments.lib.nets.mlp import apply_mlp, init_mlp

HIDDEN, CLASSES = 16, 4
"""Units and classes of the teacher. It sees a quarter of the inputs: the others are zero."""


def load_tasks(config: Any) -> dict[str, SmallData]:
    """All of `config.tasks`, each with a leading axis of seeds."""
    return {
        task: stack_seeds([load_task(config, task, seed) for seed in config.seed_range()])
        for task in config.tasks
    }


def load_task(config: Any, task: str, seed: int) -> SmallData:
    """A task of one seed."""
    recipe = config.recipe
    load = functools.partial(
        small_data, config.data, seed=seed, train_size=config.train_size,
        test_size=config.test_size, num_classes=recipe.classes,
    )  # fmt: skip
    kind, _, percent = task.partition("-")
    if kind == "wrong":
        return load(label_noise=float(percent) / 100, flat=recipe.flat)
    made = {"teacher": _teacher, "views": _views, "patches": _patches}
    if kind not in made:
        raise ValueError(f"there is no task {task!r}: take {', '.join(made)} or wrong-PERCENT")
    like = load(flat=False)
    shape = like.inputs.shape[1:]
    size = math.prod(shape)

    def of_shape(inputs: np.ndarray) -> np.ndarray:
        inputs = inputs.reshape(len(inputs), -1)
        inputs = np.pad(inputs, ((0, 0), (0, size - inputs.shape[1])))
        return inputs if recipe.flat else inputs.reshape(-1, *shape)

    data = made[kind](jax.random.key(seed), like, size, recipe.classes)
    return data._replace(inputs=of_shape(data.inputs), test_inputs=of_shape(data.test_inputs))


def _teacher(key: jax.Array, like: SmallData, size: int, classes: int) -> SmallData:
    drawn, weights = jax.random.split(key)
    seen = max(1, size // 4)
    layers = (seen, HIDDEN, min(CLASSES, classes))
    teacher = functools.partial(apply_mlp, init_mlp(weights, layers))
    sizes = {"train_size": len(like.targets), "test_size": len(like.test_targets)}
    return taught(drawn, teacher, dimension=seen, **sizes)


def _views(key: jax.Array, like: SmallData, size: int, classes: int) -> SmallData:
    del classes
    fixed, train, test = jax.random.split(key, 3)
    directions = make_directions(fixed, size // 2)
    found = draw_views(train, directions, len(like.targets))
    tested = draw_views(test, directions, len(like.test_targets), shares=(1, 0, 0))
    # As `small_data` does: with their mean the largest eigenvalue is beyond what SAM is stable at.
    mean, scale = found.inputs.mean(0), found.inputs.std()
    inputs, test_inputs = ((a - mean) / scale for a in (found.inputs, tested.inputs))
    return SmallData(inputs, found.targets, found.targets, test_inputs, tested.targets)


def _patches(key: jax.Array, like: SmallData, size: int, classes: int) -> SmallData:
    del size
    fixed, drawn = jax.random.split(key)
    _, *sides, channels = like.inputs.shape
    patches = make_patches(fixed, size=1 + min(sides) // 4, channels=channels, num_classes=classes)
    return like._replace(
        inputs=add_patches(drawn, like.inputs, like.targets, patches, alone=0).inputs
    )
