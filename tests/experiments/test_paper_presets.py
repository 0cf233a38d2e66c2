"""The paper presets train: the first updates of each, its network and optimiser as they are."""

import dataclasses
import importlib
from typing import Any

import numpy as np
import pytest

from experiments import registry
from experiments.lib.nets.architecture import Architecture
from experiments.lib.runs import shares
from experiments.lib.runs.kept import load_arrays
from experiments.lib.training import curvature
from experiments.lib.training.recipes import Recipe

LABS = {
    name: module.lab
    for name in registry.summaries()
    if hasattr(module := importlib.import_module(f"experiments.{name}"), "lab")
}
UPDATES = 20
# A network of 36 million parameters: one piece of six, SAM with a single radius. And the spectra
# of one network of four, that with batch norm and skips.
ONE_PIECE = {"sam_vs_sgd": "4/6", "hessian_outliers": "4/4"}
# Examples of the Hessian and of a batch (a recipe's is set below), updates between measurements,
# parts of a full batch.
FEW = {"measured": 2, "batch_size": 10, "every": 4, "parts": 2}
# Besides, networks of an ensemble; fewer images where several of 36 million parameters are
# evaluated at many points; and what goes with what smoke shortens or with the paper's network.
FEWER: dict[str, dict[str, Any]] = {
    "ensembles": {"members": 16},
    "fast_ensembling": {"members": 2, "train_size": 20, "test_size": 10},
    "grokking": {"modulus": 97, "fraction": 0.05, "other_fractions": (0.1,), "small_batch": 64},
    "lm_spectrum": {"data": "pydoc"},  # with all tokens, in a decoder that is smaller than GPT-2
    "mode_connectivity": {"train_size": 20, "test_size": 10},
    "scale_invariance": {"regimes": (1e-3, 0.03, 1.0)},
}
SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1)}
OWN = {f.name for f in dataclasses.fields(Architecture)}


def _short(paper: Any, smoke: Any, cpu: Any, **more: Any) -> Any:
    """The paper's options but for what the smoke preset shortens; the network is the paper's."""
    found = {}
    for field in dataclasses.fields(paper):
        name = field.name
        ours, theirs, default = (getattr(c, name) for c in (paper, smoke, cpu))
        if dataclasses.is_dataclass(ours):
            found[name] = _short(ours, theirs, default)
        elif theirs != default and not (isinstance(paper, Architecture) and name in OWN):
            found[name] = theirs
        if name in FEW:
            found[name] = FEW[name]
    return dataclasses.replace(paper, **found | more)


def _updates(recipe: Recipe, size: int | None) -> Recipe:
    """As many epochs of as small batches as make so many updates."""
    if size is None:  # all of a table, in full batches
        return dataclasses.replace(recipe, epochs=UPDATES, record_every=UPDATES // 2)
    each = min(size // 2, -(-UPDATES // recipe.epochs))
    return dataclasses.replace(recipe, batch_size=size // each, epochs=-(-UPDATES // each))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A function of a data set's name and classes: a file of random images of its shape."""
    folder, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)

    def path(data: str, classes: int) -> str:
        file, arrays = folder / f"{data}-{classes}.npz", {}
        for prefix, count in (("", 300), ("test_", 40)):
            drawn = draw.standard_normal((count, *SHAPES.get(data, (32, 32, 3))))
            arrays |= {f"{prefix}inputs": drawn, f"{prefix}targets": np.arange(count) % classes}
        np.savez(file, **arrays)
        return str(file)

    return path


@pytest.fixture
def few_products(monkeypatch):
    """Curvature at the end by so few products that it is no more than measured."""
    module, limits = curvature.flatjax, {"eigsh": "max_products", "trace": "num_products"}
    for name, limit in limits.items():
        full = getattr(module, name)

        def less(*args, full=full, limit=limit, **options):
            return full(*args, **options | {limit: 12})  # a certified list of ten takes as many

        monkeypatch.setattr(module, name, less)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name, lab in LABS.items() if "paper" in lab.presets])
def test_the_first_updates(name, images, few_products, tmp_path):
    lab = LABS[name]
    paper, smoke, cpu = (lab.presets[preset] for preset in ("paper", "smoke", "cpu"))
    config = _short(paper, smoke, cpu, **FEWER.get(name, {}))
    inner = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    nets = {key: value for key, value in inner.items() if isinstance(value, Architecture)}
    changes: dict[str, Any] = {
        key: _updates(value, inner.get("train_size"))
        for key, value in nets.items()
        if isinstance(value, Recipe)
    }
    for key, value in nets.items():
        assert all(getattr(value, own) == getattr(getattr(paper, key), own) for own in OWN), key
    classes = max((value.classes for value in nets.values()), default=10)
    if paper.data not in ("modular", "tokens.npy"):
        changes["data"] = images(paper.data, classes)
    changes["share"] = ONE_PIECE.get(name)
    config = dataclasses.replace(config, out=tmp_path, quiet=True, **changes)
    shares.run(lab.main, config)
    assert name in ONE_PIECE or (tmp_path / "summary.json").exists()
    # Without a loss to stop at, where training ends counts.
    for path in tmp_path.rglob("end_*.npz"):
        assert load_arrays(path)["reached"].all()
