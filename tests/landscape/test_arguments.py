"""What is no params is an error at every door, whatever the door looks at first."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import flatjax

W = {"kernel": jnp.ones((3, 2))}
BATCH, POSITIONS, KEY = jnp.ones((4, 3)), jnp.linspace(0, 1, 3), jax.random.key(0)


class Tensor:
    """Looks like an array, and is another library's."""

    shape, dtype = (3, 2), "torch.float32"


def loss_fn(params, x):
    return (x @ params["kernel"]).sum(axis=1)


DOORS = {
    "loss_along": lambda f, p: flatjax.loss_along(
        f, p, BATCH, direction=W, positions=POSITIONS
    ),
    "loss_surface": lambda f, p: flatjax.loss_surface(
        f, p, BATCH, first=W, second=W, positions=POSITIONS
    ),
    "barrier": lambda f, p: flatjax.barrier(f, p, W, BATCH),
    "log_volume": lambda f, p: flatjax.log_volume(
        f, p, BATCH, key=KEY, threshold=2.0, num_directions=3
    ),
    "filter_normalized_direction": lambda f, p: flatjax.filter_normalized_direction(p, key=KEY),
    "random_directions": lambda f, p: flatjax.random_directions(p, 2, key=KEY),
    "bezier": lambda f, p: flatjax.bezier([p, None, W]),
    "sam_sharpness": lambda f, p: flatjax.sam_sharpness(f, p, BATCH, rho=0.1),
    "eps_sharpness": lambda f, p: flatjax.eps_sharpness(f, p, BATCH),
    "stiffness": lambda f, p: flatjax.stiffness(f, p, BATCH),
    "per_example_gradients": lambda f, p: flatjax.per_example_gradients(f, p, BATCH),
    "jacobian": lambda f, p: flatjax.jacobian(f, p, BATCH),
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
def test_functions_tensors_and_numbers_among_the_params(door):
    call = DOORS[door]
    naive = eqx.nn.MLP(3, 2, 4, 1, key=KEY)
    for params, text in (
        ({"kernel": Tensor()}, r"params\['kernel'\] is a .*Tensor, no array of JAX: convert"),
        (naive, r"params\.activation must .*equinox.partition\(model"),
        ({"kernel": 1.0}, r"params\['kernel'\] must be .*array, got float"),
    ):
        with pytest.raises(TypeError, match=text):
            call(loss_fn, params)
    with pytest.raises(
        TypeError, match=r"params is a function: the order is|the order is \(loss_f"
    ):
        call(W, loss_fn)


def test_the_other_points():
    with pytest.raises(TypeError, match=r"b\['kernel'\] is a .*Tensor, no array of JAX: convert"):
        flatjax.barrier(loss_fn, W, {"kernel": Tensor()}, BATCH)
    with pytest.raises(TypeError, match=r"params\[1\]\['kernel'\] is a .*Tensor, no array of JAX"):
        flatjax.plane_through(W, {"kernel": Tensor()}, W)
