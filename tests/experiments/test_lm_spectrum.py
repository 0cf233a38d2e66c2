"""The text, the types of blocks and the measured numbers are what they are said to be."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from experiments import lm_spectrum as experiment
from experiments.lib.runs.errors import BadData
from experiments.lm_spectrum import decoder, measuring, numbers, text, training


def test_the_reference_text_comes_with_python():
    found = text.load("pydoc", vocabulary=256, context=64)
    whole = np.concatenate(found)
    assert bytes(whole.astype(np.uint8)).decode().count("\0") == (whole == 0).sum() > 70
    assert len(found.test) == round(0.1 * len(whole)) > 30_000


def test_texts_of_ones_own(tmp_path):
    book, ids = tmp_path / "book.txt", tmp_path / "ids.npy"
    book.write_bytes(b"abcdefghij" * 3)
    found = text.load(str(book), vocabulary=256, context=2)
    assert bytes(found.train.astype(np.uint8)) == b"abcdefghij" * 2 + b"abcdefg"
    assert found.test.tolist() == [ord(c) for c in "hij"]
    np.save(ids, np.arange(20, dtype=np.uint16))
    found = text.load(str(ids), vocabulary=20, context=1)
    assert found.test.tolist() == [18, 19]
    assert found.train.dtype == np.int32
    for given, words in (
        ({"vocabulary": 19}, "--vocabulary 19"),
        ({"context": 2}, "test part of .* have 2 tokens"),
    ):
        with pytest.raises(BadData, match=words):
            text.load(str(ids), **{"vocabulary": 20, "context": 1} | given)


def test_what_is_no_text_stops_at_the_door(tmp_path):
    path = tmp_path / "ids.npy"
    for array in (np.zeros(30), np.zeros((5, 6), int)):
        np.save(path, array)
        with pytest.raises(BadData, match="one row of integers"):
            text.load(str(path), vocabulary=9, context=1)
    np.save(path, np.full(30, -1))
    with pytest.raises(BadData, match="tokens from -1"):
        text.load(str(path), vocabulary=9, context=1)
    path.write_bytes(b"no array")
    with pytest.raises(BadData, match="cannot be read"):
        text.load(str(path), vocabulary=9, context=1)
    with pytest.raises(BadData, match="takes pydoc, a text file"):
        text.load(str(tmp_path / "none.txt"), vocabulary=9, context=1)


def test_windows():
    row = np.arange(32, dtype=np.int32)
    found = text.spread(row, 3, 4)  # of seven
    assert found.inputs[:, 0].tolist() == [0, 12, 24]
    np.testing.assert_array_equal(found.targets, found.inputs + 1)
    with pytest.raises(BadData, match="8 windows are to be measured; the text has 7"):
        text.spread(row, 8, 4)
    inputs, targets = text.drawn(jax.random.key(0), jnp.asarray(row), 500, 4)
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs - inputs[:, :1], np.tile(np.arange(4), (500, 1)))
    # Every window of the row, the last of which ends with its last token.
    assert set(np.asarray(inputs[:, 0]).tolist()) == set(range(28))


@pytest.fixture
def small():
    return decoder.Decoder(vocabulary=7, context=5, width=4, layers=2, heads=2, tied=False)


def test_every_parameter_belongs_to_one_type(small):
    params = jax.eval_shape(lambda: decoder.start(small, 0))
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = decoder.block_type(jax.tree_util.keystr(path, simple=True, separator="/"))
        sizes[kind] = sizes.get(kind, 0) + leaf.size
    # Two layers of width 4; with biases.
    assert sizes == {
        "embedding": 7 * 4 + 5 * 4, "query/key": 2 * 2 * 20, "value/output": 2 * 2 * 20,
        "MLP": 2 * (4 * 16 + 16 + 16 * 4 + 4), "norm": 5 * 8, "head": 4 * 7,
    }  # fmt: skip
    assert set(sizes) == set(measuring.types(tied=False))
    assert set(measuring.types(tied=True)) == set(sizes) - {"head"}
    for path in ("block_0/Dense_2/kernel", "query/Dense_0"):
        with pytest.raises(ValueError, match="types of blocks"):
            decoder.block_type(path)


def test_the_network_does_not_look_ahead(small):
    params = jax.jit(lambda: decoder.start(small, 0))()
    tokens = jnp.array([[1, 2, 3, 4, 5], [1, 2, 3, 6, 5], [1, 1, 1, 1, 1]])
    logits = jax.jit(lambda p: small.apply({"params": p}, tokens).logits())(params)
    one, other, same = logits
    assert abs(same - same[0]).max(1)[1:].min() > 1e-3  # it knows the place
    np.testing.assert_allclose(one[:3], other[:3], atol=1e-6)
    assert abs(one[3:] - other[3:]).max(1).min() > 1e-3
    (loss, kept), (_, twice) = (
        jax.jit(jax.value_and_grad(decoder.loss_of(small.clone(remat=remat))))(
            params, (tokens, tokens)
        )
        for remat in (False, True)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept, twice)
    expected = -jax.nn.log_softmax(logits)
    expected = jnp.take_along_axis(expected, tokens[..., None], -1).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    tied = small.clone(tied=True)
    params = jax.jit(lambda: decoder.start(tied, 0))()
    assert "head" not in params
    kernel = jax.jit(lambda p: tied.apply({"params": p}, tokens).kernel)(params)
    np.testing.assert_array_equal(kernel, params["embed"]["embedding"].T)


def test_training(monkeypatch, tmp_path):
    """The rate is 0 at the first update; of full batches the second is of the same gradient."""
    monkeypatch.setattr(training, "curvature", lambda *given: {})
    smoke = experiment.lab.presets["smoke"]
    config = dataclasses.replace(smoke, updates=2, full_updates=2, every=2, full_rate=3e-3,
                                 learning_rate=1e-3)  # fmt: skip
    data = training.load(config)
    model: Any = training.decoder(config)
    assert data.measured[0].shape == data.test[0].shape == (2, 8)
    params = decoder.start(model, 7)
    loss = decoder.loss_of(model)(params, data.measured)
    for arm in training.ARMS:
        records, last = training.train(tmp_path / arm, config, arm, 7, data)
        moved = max(jax.tree.leaves(jax.tree.map(lambda a, b: abs(a - b).max(), params, last)))
        assert records["update"].tolist() == [2]
        assert (abs(records["mean_loss"][0] - loss) < 1e-5) == (arm == "full batch")
        if arm == "full batch":
            np.testing.assert_allclose(moved, 3e-3, rtol=1e-2)
        else:
            assert 0 < moved < 1.5e-3
        # Finished, so that nothing is computed again.
        again, _ = training.train(tmp_path / arm, config, arm, 7, data)
        np.testing.assert_array_equal(again["mean_loss"], records["mean_loss"])


def test_curvature_of_a_known_quadratic(monkeypatch):
    """One gradient seen by Adam, then the eigenvalues of h / D, and critical sharpness by hand."""
    h = jnp.array([3.0, 40.0, 5.0])
    monkeypatch.setattr(
        training, "loss_of", lambda model: lambda p, batch: (h * p**2).sum() / 2 + batch[0].mean()
    )
    monkeypatch.setattr(training, "decoder", lambda config: "a quadratic")
    config = experiment.Config(learning_rate=1e-3, full_rate=0.01, b2=0.9)
    point, seen = jnp.array([1.0, 2.0, -1.0]), jnp.array([2.0, 100.0, 0.5])
    _, state = training.optimizer(config, "full batch").update(
        seen, training.optimizer(config, "full batch").init(point), point
    )
    state = training.State(point, state, jax.random.key_data(jax.random.key(0)), jnp.int32(1))
    windows = jnp.zeros((1, 2)), jnp.zeros((1, 2))
    data = training.Data(jnp.zeros(9, int), windows, (windows[0] + 1, windows[1]))
    found = training.curvature(config, "full batch", state, data)
    diagonal = (1 - 0.9) * np.abs(seen)  # the momentum's bias correction after one step
    edge = 2 * 1.9 / (0.1 * 0.01)  # 38 / eta
    np.testing.assert_allclose(found["loss"], (h * point**2).sum() / 2, rtol=1e-6)
    np.testing.assert_allclose(found["test_loss"], found["loss"] + 1)
    np.testing.assert_allclose(found["sharpness"], 40, rtol=1e-4)
    np.testing.assert_allclose(found["plain_ratio"], 40 / edge, rtol=1e-4)
    np.testing.assert_allclose(found["preconditioned"], (5 / 0.05) / edge, rtol=1e-4)
    step = h * point / diagonal
    critical = (h * step**2).sum() / (h * point * step).sum()
    np.testing.assert_allclose(found["critical"], critical / edge, rtol=0.01)
    other = training.curvature(config, "batches", state, data)  # a tenth of the rate
    np.testing.assert_allclose(other["preconditioned"], found["preconditioned"] / 10, rtol=1e-4)
    diverged = training.curvature(config, "batches", state._replace(params=point * jnp.nan), data)
    assert set(diverged) == set(found)
    assert np.isnan(list(diverged.values())).all()


def test_the_spectrum_of_a_known_matrix(monkeypatch):
    diagonal = {
        "embed": jnp.array([9.0, 1, 1, -2]), "query": jnp.array([0.5, 0.25, 0]),
        "Dense_0": jnp.array([8.0, 7, 0.125]), "out": jnp.array([6.0, 5, 4]),
        "LayerNorm_0": jnp.array([10.0, 3]),
    }  # fmt: skip
    op = flatjax.hessian(
        lambda p, _: jnp.stack([(d * p[k] ** 2).sum() for k, d in diagonal.items()]).sum() / 2,
        jax.tree.map(jnp.zeros_like, diagonal), None,
    )  # fmt: skip
    monkeypatch.setattr(measuring, "hessian", lambda *given: op)
    nothing: Any = None
    data = training.Data(nothing, nothing, nothing)
    found = measuring.spectrum(experiment.Config(tied=True), 0, nothing, data)
    traces = [9, 0.75, 15.125, 15, 13]
    for name, expected in {
        "top": [10, 9, 8, 7, 6, 5, 4, 3, 1, 1], "bottom": [0, -2], "trace": sum(traces),
        "moment": sum(traces), "traces": traces, "tops": [9, 0.5, 8, 6, 10],
        "sizes": [4, 3, 3, 3, 2], "converged": 1, "trace_error": 0,
    }.items():  # fmt: skip
        np.testing.assert_allclose(found[name], expected, atol=1e-4, err_msg=name)
    assert found["dealt"].sum() == pytest.approx(sum(traces))
    keys = jax.random.split(jax.random.key(0), 20)
    entries = {"a": jnp.arange(2.0), "b": jnp.arange(2.0, 4)}
    drawn = [measuring.dealt(entries, np.array([1, 3]), key) for key in keys]
    assert {tuple(sums) for sums in drawn} == {(0, 6), (1, 5), (2, 4), (3, 3)}
    assert found["nodes"].shape == found["weights"].shape == (6, measuring.NODES)
    np.testing.assert_allclose(found["weights"].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.sort(found["nodes"][5, :2]), [3, 10], rtol=1e-4)


def _runs(*, shares, dealt, apart, edge, batches, critical, ends):
    """Made-up runs of five seeds that differ by one in a thousand."""
    wobble = 1 + 1e-3 * np.array([[0.0], [1], [-1], [2], [-2]])
    sizes = np.array([100, 10, 100, 10, 2, 50])
    along = wobble * np.array([2.3, 2.2, 2.1, 2, 1.1, 1.02, 0.98, 0.9])  # 1 over the last half

    def arm(level):
        seen = level * along
        over, back = critical
        return {"preconditioned": seen, "plain_ratio": 1e-3 * seen,
                "critical": over * (seen[:, ::-1] if back else seen)}  # fmt: skip

    nodes = np.zeros((5, 7, 3))
    nodes[:, 1:] = (apart ** np.arange(6))[:, None] * np.array([1.0, 2, 3])
    nodes = nodes * (1 + 0.1 * np.arange(5))[:, None, None]
    trace = np.sum(np.array(shares) * sizes)
    end = {
        "sizes": np.tile(sizes, (5, 1)), "nodes": nodes, "weights": np.full((5, 7, 3), 1 / 3),
        "traces": wobble * np.array(shares) * sizes, "dealt": wobble * np.array(dealt) * sizes,
        "trace": wobble[:, 0] * trace * ends["whole"],
        "trace_error": wobble[:, 0] * trace * ends["error"],
        "trace_errors": wobble * np.full(6, trace / 100),
        "converged": np.full(5, ends["converged"]), "short": np.full(5, ends["short"]),
    }  # fmt: skip
    return {"batches": arm(batches), "full batch": arm(edge), "end": end}


def _verdicts(runs):
    judged = experiment.lab.judged(runs, experiment.Config())
    return {v.claim.name: v.verdict for v in judged}


GOOD = {
    "shares": (1, 2, 3, 4, 5, 6), "dealt": (5, 4, 3, 2, 1, 3), "apart": 5.0, "edge": 1.0,
    "batches": 0.5, "critical": (0.5, False),
    "ends": {"whole": 1.0, "error": 0.005, "converged": 1.0, "short": 0.5},
}  # fmt: skip


def test_verdicts_on_made_up_runs():
    assert _verdicts(_runs(**GOOD)) == dict.fromkeys(experiment.lab.claims, "reproduced")
    bad = {
        "shares": (5, 4, 3, 2, 1, 6), "apart": 1.0, "edge": 1.2, "batches": 0.95,
        "critical": (2, True),
        "ends": {"whole": 1.1, "error": 0.02, "converged": 0.9, "short": 0.5},
    }  # fmt: skip
    found = _verdicts(_runs(**GOOD | bad))
    assert found == dict.fromkeys(experiment.lab.claims, "not reproduced")


def test_what_passes_for_the_null_too_is_void():
    found = _verdicts(_runs(**GOOD | {"dealt": GOOD["shares"], "edge": 0.5}
                            | {"ends": GOOD["ends"] | {"short": 1.0}}))  # fmt: skip
    void = {name for name, verdict in found.items() if verdict == "void"}
    order = {name for name in experiment.lab.claims if "-below-" in name}
    assert void == order | {"batches-stay-below", "top-and-bottom-are-certified"}
    assert len(order) == 4


def test_the_distance_of_two_spectra():
    """The second is the first times ten, far above the unit: one decade."""
    nodes = np.array([[[0.0, 0], [1e3, 3e3], [1e4, 3e4]]] * 2)
    end = {"trace": np.ones(2), "sizes": np.ones((2, 1)), "nodes": nodes,
           "weights": np.full((2, 3, 2), 0.5)}  # fmt: skip
    assert numbers.distance({"end": end}, (0, 0), (1, 1)) == pytest.approx(1, abs=1e-6)
    assert numbers.distance({"end": end}, (0, 1), (1, 1)) == 0
    # In units of 0.01, the mean eigenvalue being 1: symmetric about zero, and linear there.
    small = numbers.decades(np.array([-1e-4, 0, 1e-4]), 0.01)
    np.testing.assert_allclose(small, np.array([-0.005, 0, 0.005]) / np.log(10), rtol=1e-3)
    # The unit is a hundredth of the mean eigenvalue.
    end["nodes"] = np.array([[[0.0, 0], [0, 0], [0.02 * np.sinh(np.log(10))] * 2]] * 2)
    assert numbers.distance({"end": end}, (0, 0), (1, 1)) == pytest.approx(1)
    end["nodes"] = nodes * np.nan
    assert np.isnan(numbers.distance({"end": end}, (0, 0), (1, 1)))


def test_options_that_do_not_fit():
    with pytest.raises(ValueError, match="warm_up <= every"):
        experiment.Config(warm_up=100, every=50)
    with pytest.raises(ValueError, match="do not divide"):
        experiment.Config(width=10, heads=4)
