"""The PyTorch twins compute what the JAX networks compute; needs PyTorch (`make bench`)."""

import jax
import numpy as np
import pytest

from benchmarks.peers import adapter, tasks

torch = pytest.importorskip("torch")

TINY = {
    "mlp": {"width": 6, "examples": 12},
    "cnn": {"channels": 3, "examples": 4, "image": 8},
    "transformer": {"width": 8, "heads": 2, "vocabulary": 11, "positions": 5, "examples": 3},
}


# PyHessian keeps the graph of its gradient, against which PyTorch warns.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module", params=sorted(TINY))
def task(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.SIZES[request.param], "tiny", TINY[request.param])
        patch.setattr(tasks, "TRAINING_STEPS", 2)
        return tasks.create(f"{request.param}-tiny")


def test_outputs_and_gradients_are_equal(task):
    from benchmarks.peers import jax_model, torch_model

    model_fn, params, batch = jax_model.model_of(task)
    logits = np.asarray(model_fn(params, batch[0]))
    gradient = jax.grad(lambda p: jax_model.mean_loss(model_fn, p, batch))(params)
    model, inputs, labels = torch_model.model_of(task)
    outputs = model(inputs)
    torch.nn.functional.cross_entropy(outputs, labels).backward()
    # float32 sums of some tens of terms in another order.
    twin = outputs.detach().numpy().reshape(logits.shape)
    np.testing.assert_allclose(twin, logits, rtol=1e-5, atol=1e-5)
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)])
    found = torch_model.join(task, [p.grad for p in model.parameters()])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("system", adapter.SYSTEMS)
def test_products_are_equal(task, system):
    own, peer = adapter.load("flatjax"), adapter.load(system)
    try:
        peer.setup(task)
    except ImportError:
        pytest.skip(f"{system} is not installed")
    own.setup(task)
    v = np.random.default_rng(0).normal(size=tasks.num_params(task)).astype(np.float32)
    expected = np.asarray(own.product(v))
    # float32 second derivatives, summed in another order, relative to the largest entry.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(peer.product(v)), expected, atol=2e-5 * scale)


@pytest.mark.parametrize("name", ["resnet", "gpt", "vit"])
def test_networks_of_user_size_are_equal(name):
    from benchmarks.peers import torch_blocks, user_models

    network = user_models.module(name)
    params, batch = network.params(small=True), network.batch(small=True)
    logits = np.asarray(network.apply(params, batch[0]))
    model, inputs, _ = torch_blocks.model_of(name, params, batch)
    twin = model(inputs).detach().numpy().reshape(logits.shape)
    # float32 sums in another order, through up to eighteen layers.
    np.testing.assert_allclose(twin, logits, atol=1e-4 * np.abs(logits).max())
