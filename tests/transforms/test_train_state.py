"""Extra arguments reach the optimiser of a flax train state; the rest is flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training import train_state

import flatjax.transforms as ft
from tests.transforms.zoo import loss_fn, network

PARAMS, BATCH = network()
GRAD = jax.grad(loss_fn)


class State(ft.ForwardExtraArgs, train_state.TrainState):
    batch_stats: dict


class Wider(State):
    extra_args = (*ft.ForwardExtraArgs.extra_args, "temperature")


def recorder(seen):
    """An optimiser that keeps the extra arguments it was given."""

    def update(updates, state, params=None, **extra):
        seen.append((params, extra))
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def created(tx, kind=State):
    return kind.create(apply_fn=loss_fn, params=PARAMS, tx=tx, batch_stats={"mean": jnp.zeros(2)})


def test_a_step_is_that_of_the_optimiser():
    tx = optax.chain(ft.sam(0.3, check=False), optax.sgd(0.5, momentum=0.9))
    compilations = []

    @jax.jit
    def step(state):
        compilations.append(0)
        grads = GRAD(state.params, BATCH)
        stats = {"mean": state.batch_stats["mean"] + 1}
        fn = lambda p: GRAD(p, BATCH)  # noqa: E731
        return state.apply_gradients(grads=grads, grad_fn=fn, batch_stats=stats)

    @jax.jit
    def by_hand(params, opt_state):
        fn = lambda p: GRAD(p, BATCH)  # noqa: E731
        updates, opt_state = tx.update(fn(params), opt_state, params, grad_fn=fn)
        return optax.apply_updates(params, updates), opt_state

    state, hand = created(tx), (PARAMS, tx.init(PARAMS))
    for _ in range(3):
        state, hand = step(state), by_hand(*hand)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), hand)
    assert len(compilations) == 1
    assert state.tx is tx
    assert int(state.step) == 3
    assert state.batch_stats["mean"].tolist() == [3, 3]


def test_names_are_sorted_into_fields_and_extra_arguments():
    seen = []
    state = created(recorder(seen), Wider)
    extra = {name: name for name in ft.ForwardExtraArgs.extra_args}
    state.apply_gradients(grads=PARAMS, batch_stats={}, temperature=2.0, **extra)
    state.apply_gradients(grads=PARAMS)
    assert [given for _, given in seen] == [{**extra, "temperature": 2.0}, {}]
    assert seen[0][0] is PARAMS


@pytest.mark.parametrize("name", ["batch_stat", "temperature"])
def test_a_name_that_is_neither_is_an_error(name):
    with pytest.raises(TypeError, match=rf"State has no field '{name}'.*grad_fn, .*'{name}'\)\."):
        created(optax.sgd(0.1)).apply_gradients(grads=PARAMS, **{name: 0})


def test_an_optimiser_without_extra_arguments_ignores_them():
    plain = optax.GradientTransformation(
        lambda p: (), lambda updates, state, p=None: (updates, state)
    )
    state = created(plain)
    new = state.apply_gradients(grads=PARAMS, grad_fn=lambda p: p, batch=BATCH)
    jax.tree.map(np.testing.assert_array_equal, new, state.apply_gradients(grads=PARAMS))


def test_what_flax_does_with_overwritten_params_is_still_done():
    owg = "_overwrite_with_gradient"
    params = {"params": {"w": jnp.ones(2)}, owg: jnp.ones(1)}
    seen = []
    tx = recorder(seen)
    state = State.create(apply_fn=None, params=params, tx=tx, batch_stats={})
    grads = {"params": {"w": jnp.ones(2)}, owg: jnp.full(1, 7.0)}
    new = state.apply_gradients(grads=grads, grad_fn=len)
    assert new.params[owg].tolist() == [7]
    assert new.params["params"]["w"].tolist() == [2, 2]
    assert seen[0][1] == {"grad_fn": len}


def test_the_state_is_saved_and_restored_as_flax_saves_it():
    state = created(optax.chain(ft.looksam(0.1, every=2), optax.adam(0.1)))
    grads = GRAD(PARAMS, BATCH)
    state = state.apply_gradients(grads=grads, grad_fn=lambda p: GRAD(p, BATCH))
    template = created(state.tx)
    back = serialization.from_bytes(template, serialization.to_bytes(state))
    jax.tree.map(np.testing.assert_array_equal, back, state)
    assert back.tx is state.tx
