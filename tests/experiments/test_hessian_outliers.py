"""The spectra are those of the loss of training, and the claims can fail."""

import jax
import numpy as np
import pytest

from experiments import hessian_outliers as experiment
from experiments.hessian_outliers import spectra
from experiments.lib.data.small import SmallData
from experiments.lib.nets.flat import flat_network
from experiments.lib.runs.errors import BadNetwork
from experiments.lib.training import recipes

GOOD = {"spread": [6, 6, 2, 2], "energy": [0.9, 0.8, 0.3, 0.3], "moment": 1.0, "bulk_moment": 0.5}


def _verdicts(last=1.0, late=1.0, **changed):
    """Those of three seeds that differ by one in a hundred, with some numbers changed.

    `last` multiplies lambda_1 of the arms with batch norm at the last checkpoint, `late` the share
    of the gradient.
    """
    numbers = GOOD | changed
    draw = np.array([[0.99, 0.99], [1, 1], [1.01, 1.01]])  # three seeds, two checkpoints
    runs = {}
    for i, arm in enumerate(experiment.ARMS):
        top = draw**2 * numbers["spread"][i]
        top[:, -1] *= last if i > 1 else 1
        runs[arm] = {
            "eigenvalues": np.stack([top * draw**i, np.ones_like(top)], axis=-1),
            "energy": draw ** (1 + i) * numbers["energy"][i] * [1.0, late if i > 1 else 1.0],
            "trace": 100 * np.ones_like(draw),
            "moment": 100 * numbers["moment"] * draw**0.2,
            "bulk_moment": 100 * numbers["bulk_moment"] * draw**0.2,
        }
    judged = experiment.lab.judged(runs, experiment.Config(seeds=3))
    return {v.claim.name: v.verdict for v in judged}


def test_verdicts_on_made_up_runs():
    assert set(_verdicts().values()) == {"reproduced"}
    wrong = _verdicts(spread=[6, 2, 6, 9], energy=[0.9, 0.8, 0.8, 0.8], moment=1.1, bulk_moment=1.1)
    assert set(wrong.values()) == {"not reproduced"}
    assert _verdicts(moment=0.9)["density-has-the-trace"] == "not reproduced"


def test_one_checkpoint_is_enough_for_outliers_to_be_back():
    found = _verdicts(last=3.0)
    for name in ("outliers-vanish", "outliers-vanish-beside-skips"):
        assert found[name] == "not reproduced"


def test_the_gradient_at_the_start_and_later_are_two_claims():
    found = _verdicts(late=2.5)
    assert found["gradient-spreads-at-the-start"] == "reproduced"
    assert found["gradient-spreads"] == "not reproduced"


def test_the_numbers_of_two_checkpoints():
    def records(*top):
        return {"eigenvalues": np.stack([[top], np.ones((1, 2))], axis=-1)}

    runs, config = {"a": records(2.0, 8.0), "b": records(1.0, 1.0)}, experiment.Config(seeds=1)
    np.testing.assert_allclose(experiment.mean_ratio("a", "b")(runs, config), 4)
    np.testing.assert_allclose(experiment.largest_ratio("a", "b")(runs, config), 8)
    arms = {"a": {"moment": np.array([[9.0, 3.0]]), "trace": np.array([[1.0, 2.0]])}}
    np.testing.assert_allclose(experiment.moment("moment")(arms, config), 1.5)


def test_where_nothing_matters_skips_are_not_said_to_matter_little():
    """Batch norm passes as well then, and a density that needs no outliers for its trace."""
    found = _verdicts(spread=[6, 6, 6, 6], bulk_moment=1.0)
    void = {name for name, verdict in found.items() if verdict == "void"}
    assert void == {
        "skips-matter-little", "skips-matter-little-beside-batch-norm", "density-has-the-trace",
    }  # fmt: skip


def test_a_network_of_another_kind_is_refused(tmp_path):
    config = experiment.Config(recipe=recipes.Recipe(network="s2cnn-4"))
    with pytest.raises(BadNetwork, match="skips are for mlp, resnet and wide_resnet"):
        experiment.run(config, tmp_path)


def test_the_spectrum_is_that_of_the_loss_with_statistics_that_move():
    recipe = recipes.Recipe(network="mlp-2-3-batch", classes=3)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((12, 2, 3, 1)).astype("f")
    labels = np.arange(12, dtype=np.int32) % 3
    data = jax.tree.map(lambda a: a[None], SmallData(inputs, labels, labels, inputs, labels))
    net = flat_network(recipe, inputs.shape[1:])
    vector = np.asarray(net.init(jax.random.key(0)))
    found = spectra.measured(recipe, vector[None, None], data, 10)
    fixed = found.pop("fixed")[0]
    found = {name: values[0, 0] for name, values in found.items()}

    def loss(vector):
        return net.losses_fn(vector, (inputs[:10], labels[:10])).mean()

    values, vectors = np.linalg.eigh(jax.jit(jax.hessian(loss))(vector))
    top = values[::-1][: spectra.TOP]
    # Every unit vector is multiplied at this size: float32 rounding of the products.
    np.testing.assert_allclose(found["eigenvalues"], top, atol=1e-5 * top[0])
    np.testing.assert_allclose(found["moment"], values.sum(), rtol=1e-4)
    np.testing.assert_allclose(found["trace"], values.sum(), rtol=1e-4)
    gradient = np.asarray(jax.grad(loss)(vector))
    inside = vectors[:, ::-1][:, : spectra.TOP - 1].T @ gradient
    np.testing.assert_allclose(found["energy"], (inside**2).sum() / (gradient**2).sum(), rtol=1e-3)
    # With fixed statistics the network is another function of its parameters.
    assert fixed[0] > 0
    assert abs(fixed[0] / top[0] - 1) > 0.1


def test_what_is_recorded_is_the_vector_of_the_network():
    recipe = recipes.Recipe(network="mlp-1-4-batch-skip")
    images, labels = np.zeros((1, 2, 2, 2, 1), "f"), np.zeros((1, 2), np.int32)
    data = SmallData(images, labels, labels, images, labels)
    params, state = jax.tree.map(lambda a: a[0], recipes.init_runs(recipe, data, [3]))
    net = flat_network(recipe, (2, 2, 1))
    found = spectra.flattened(params, state, data, None)["params"]
    # Drawn in two programs, which may round differently.
    np.testing.assert_allclose(found, net.init(jax.random.key(3)), rtol=1e-6)
