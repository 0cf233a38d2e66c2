"""The hidden units of a network in another order, and back.

units = Units(recipe, data.inputs[:1])
copy = units.reordered(params, key)  # the same function
units.matched(params, copy, key)  # the same params
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import flatjax
from experiments.lib.nets.architecture import Architecture, network
from experiments.lib.nets.symmetries import symmetries


class Units:
    """Which hidden units can be put in another order, and back."""

    def __init__(self, architecture: Architecture, example: Any):
        """Takes the network, and an input.

        Raises:
          BadNetwork: nothing is known of its units.
        """
        made = jax.eval_shape(network(architecture).init, jax.random.key(0), example)
        self._tree = dict(zip(("params", "model_state"), made, strict=True))
        self._spec = symmetries(architecture, self._tree)

    def reordered(self, params: Any, key: jax.Array) -> Any:
        """The same function with its units in a random order."""
        drawn = flatjax.random_permutations(self._spec, key=key)
        return flatjax.apply_permutation(self._with(params), drawn, self._spec)["params"]

    def matched(self, target: Any, params: Any, key: jax.Array) -> Any:
        """The same function with its units in the order nearest to another network's."""
        both = self._with(target), self._with(params)
        of = {"params": True, "model_state": False}
        return flatjax.match_weights(*both, self._spec, key=key, mask=of).params["params"]

    def _with(self, params):
        """Together with batch statistics, which are made anew wherever they count."""
        state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), self._tree["model_state"])
        return {"params": params, "model_state": state}
