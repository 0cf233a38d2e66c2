"""Loss and accuracy over a whole split, example by example."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.lib.data.images import Split
from experiments.lib.nets import losses
from experiments.lib.nets.models import Model
from experiments.lib.runs.placement import Placement


class Evaluation(NamedTuple):
    """The first n examples of a split, as a network sees them.

    Attributes:
      loss: (n,) float32, the loss against the targets trained on.
      prediction: (n,) int32, the likeliest class.
      targets: (n,) int32, the labels trained on.
      clean_targets: (n,) int32, the data set's own labels.
      noisy: (n,) bool, where the two differ.
    """

    loss: np.ndarray
    prediction: np.ndarray
    targets: np.ndarray
    clean_targets: np.ndarray
    noisy: np.ndarray

    def summary(self, prefix: str) -> dict[str, float]:
        """Mean loss and accuracy; with wrong labels, the two kinds of examples apart.

        `clean_accuracy` is over rightly labelled examples, `memorized` is how many wrong labels
        are predicted, `recovered` how many wrongly labelled examples get their true class.
        """
        right = self.prediction == self.targets
        # float64 on the host: the order of summation then never shows.
        result = {"loss": self.loss.mean(dtype=np.float64), "accuracy": right.mean()}
        if self.noisy.any():
            recovered = self.prediction[self.noisy] == self.clean_targets[self.noisy]
            result |= {"memorized": right[self.noisy].mean(), "recovered": recovered.mean()}
            if not self.noisy.all():
                result["clean_accuracy"] = right[~self.noisy].mean()
        return {f"{prefix}_{name}": float(value) for name, value in result.items()}


class Evaluator:
    """Evaluates one network on any split with one compiled program."""

    def __init__(
        self,
        model: Model,
        loss: str,
        *,
        batch_size: int = 512,
        placement: Placement | None = None,
    ):
        """Takes the loss by name; batches are padded to at least `batch_size` rows.

        Every process reads all examples, and the devices of `placement` share the work.
        """
        placement = placement or Placement(data_parallel=False)
        self._batch_size = -(-batch_size // placement.devices) * placement.devices
        per_example = losses.per_example(loss)

        @jax.jit
        def evaluate_batch(params, model_state, inputs, targets):
            inputs, targets = placement.spread((inputs, targets))
            logits, _ = model.apply(params, model_state, inputs, train=False)
            return placement.collected((per_example(logits, targets), logits.argmax(-1)))

        self._evaluate_batch = evaluate_batch

    def __call__(
        self, params: Any, model_state: Any, split: Split, size: int | None = None
    ) -> Evaluation:
        """Evaluates the first `size` examples of a split (default all)."""
        size = len(split) if size is None else min(size, len(split))
        outputs, known = [], []
        for start in range(0, size, self._batch_size):
            arrays = split.chunk(start, min(start + self._batch_size, size))
            padding = self._batch_size - len(arrays.index)
            inputs, targets = (
                np.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)) for a in arrays[:2]
            )
            outputs.append(self._evaluate_batch(params, model_state, inputs, targets))
            known.append((arrays.targets, arrays.clean_targets, arrays.noisy))
        loss, prediction = (np.concatenate([np.asarray(o[i]) for o in outputs]) for i in (0, 1))
        return Evaluation(
            loss[:size], prediction[:size], *map(np.concatenate, zip(*known, strict=True))
        )
