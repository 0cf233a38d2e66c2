"""The part of a batch on which a penalty is evaluated."""

import jax
import jax.numpy as jnp
import numpy as np

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import Rigged, flat, model

XENT = losses.softmax_cross_entropy


def test_sub_batch_is_evenly_spaced_and_moves(net, dense):
    params, batch = net
    tx = ft.fisher_penalty(model, Rigged(), coef=0.5, every=1, sub_batch=2)
    labels = jnp.argmin(model(params, batch[0]), axis=-1)
    options = []
    for offset in range(4):
        part = (batch[0][offset::4], labels[offset::4])
        options.append(dense.hessian(dense.w, part) @ dense.grad(dense.w, part))
    zero = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(lambda s: tx.update(zero, s, params, batch=batch))
    state, seen = tx.init(params), set()
    for _ in range(12):
        out, state = update(state)
        distance = [np.abs(flat(out) - o).max() for o in options]
        assert min(distance) < 1e-12
        seen.add(int(np.argmin(distance)))
    assert len(seen) == 4
