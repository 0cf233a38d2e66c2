"""Two processes with two devices each compute what one process does."""

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from flatjax import parallel
from tests.parallel import library
from tests.parallel.problems import mlp
from tests.parallel.processes import run_worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    run_worker("worker_library", folder)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return [dict(np.load(folder / f"{i}.npz")) for i in range(2)]


@pytest.fixture(scope="module")
def reference():
    with jax.enable_x64(True):
        return {
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(library.one_device())
        }


def test_every_number_is_looked_at(results, reference):
    pictures = [name for name in reference if f"['whole']{name}" in results[0]]
    assert len(pictures) == 3
    assert len(results[0]) == 2 * len(reference) + 2 * len(pictures)


@pytest.mark.parametrize("placement", ["replicated", "sharded", "whole", "captured"])
def test_the_numbers_of_one_process(placement, results, reference):
    """1e-10 of the largest entry: float64 sums in another order."""
    for name, want in reference.items():
        if (got := results[0].get(f"['{placement}']{name}")) is None:
            continue
        bound = 1e-10 * np.abs(want).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=bound, err_msg=name)


def test_every_process_has_the_same_numbers(results):
    for name, value in results[0].items():
        np.testing.assert_array_equal(value, results[1][name], err_msg=name)


@pytest.mark.parametrize("devices", [4, 2])
def test_params_that_two_processes_saved_are_restored_by_one(devices, folder, x64):
    params, mesh = mlp()[0], parallel.make_mesh(devices)
    layout = parallel.param_shardings(params, mesh, min_size=0)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, layout
    )
    restored = ocp.load(folder / "params", abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert jax.tree.map(lambda a: a.sharding, restored) == layout
