"""The rows of a basis that fit into bytes, per device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flatjax
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _budget as budget

N = 200
D = jnp.concatenate([jnp.array([9.0, 7.0, 5.0]), jnp.linspace(-1.0, 1.0, N - 3)])


def test_rows_beside_other_vectors():
    v = {"a": jnp.zeros((3, 5)), "b": jnp.zeros(10)}
    assert budget.vector_bytes(v) == 100
    assert budget.vector_bytes(v, "bfloat16") == 50
    assert budget.rows_within(1000, v) == 6
    assert budget.rows_within(999, v) == 5
    assert budget.rows_within(1000, v, 7, "bfloat16") == 6
    assert budget.rows_within(10, v) == 0


def test_bytes_are_those_of_one_device():
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    v = {"a": jax.device_put(jnp.ones((2, 8)), sharding), "b": jnp.ones(5)}
    assert budget.vector_bytes(v) == 4 * (16 // 4 + 5)


def rows_of(monkeypatch, **options):
    """The capacity that `eigsh` runs with, and its pairs."""
    seen, start = [], krylov.start

    def noted(v0, capacity, *rest):
        seen.append(capacity)
        return start(v0, capacity, *rest)

    monkeypatch.setattr(krylov, "start", noted)
    pairs = flatjax.eigsh(lambda v: D * v, 2, key=jax.random.key(0), structure=D, **options)
    return seen[0], pairs


@pytest.mark.parametrize(("dtype", "rows"), [(None, 8), ("bfloat16", 16)])
def test_the_run_takes_what_fits(monkeypatch, dtype, rows):
    capacity, pairs = rows_of(monkeypatch, basis_bytes=12 * 4 * N, basis_dtype=dtype)
    assert capacity == rows
    np.testing.assert_allclose(pairs.values, [9, 7], rtol=1e-4)
    assert pairs.converged.all()


def test_ample_bytes_change_nothing(monkeypatch):
    assert rows_of(monkeypatch, basis_bytes=10**9)[0] == rows_of(monkeypatch)[0] == 32


def test_what_is_to_be_done_where_too_few_fit():
    options = {"key": jax.random.key(0), "structure": D}
    with pytest.raises(ValueError, match=r'some 6,400 bytes. Raise it, set basis_dtype="bfloat16"'):
        flatjax.eigsh(lambda v: D * v, 2, basis_bytes=4 * N * 8 - 1, **options)
    with pytest.raises(ValueError, match="at least 8 vectors and 7 vectors beside it"):
        flatjax.eigsh(lambda v: D * v, 6, basis_bytes=4 * N * 14, **options)
    pairs = flatjax.eigsh(lambda v: D * v, 2, basis_bytes=4 * N * 8, max_products=9, **options)
    assert pairs.num_products <= 9
    for more in ({"max_basis": 8}, {"block_size": 2}):
        with pytest.raises(ValueError, match="takes the place of max_basis"):
            flatjax.eigsh(lambda v: D * v, 2, basis_bytes=10**6, **more, **options)
    with pytest.raises(ValueError, match="basis_bytes must be"):
        flatjax.eigsh(lambda v: D * v, 2, basis_bytes=0, **options)
