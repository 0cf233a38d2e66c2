"""The comparison with the peers: its statistics, its choices, and flatjax's own adapter."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.stats

from benchmarks import side_by_side
from benchmarks.peers import adapter, errors, plan, tasks, worker


@pytest.fixture(scope="module")
def task():
    generator = np.random.default_rng(0)
    shapes = [(6, 6), (6, 6), (6, 10)]
    weights = [generator.normal(size=s).astype(np.float32) / s[0] ** 0.5 for s in shapes]
    inputs = generator.normal(size=(40, 6)).astype(np.float32)
    labels = generator.integers(0, 10, 40).astype(np.int32)
    params = {str(i): w for i, w in enumerate(weights)}
    return adapter.Task("mlp", 0, params, inputs, labels)


@pytest.fixture(scope="module")
def own(task):
    found = adapter.load("flatjax")
    found.setup(task)
    return found


@pytest.fixture(scope="module")
def truth(own, task):
    size = tasks.num_params(task)
    matrix = np.stack([np.asarray(own.product(row)) for row in np.eye(size, dtype=np.float32)])
    values = np.linalg.eigvalsh((matrix + matrix.T).astype(np.float64) / 2)
    return {
        "top": values[::-1][:10],
        "bottom": values[:2],
        "trace": values.sum(),
        "nodes": values,
        "weights": np.full(size, 1 / size),
        "deviation": values.std(),
    }


def test_wasserstein_distance_is_that_of_scipy():
    generator = np.random.default_rng(1)
    u, v = generator.normal(size=20), generator.normal(size=31)
    p, q = generator.dirichlet(np.ones(20)), generator.dirichlet(np.ones(31))
    expected = scipy.stats.wasserstein_distance(u, v, p, q)
    # Two float64 summations of some 50 terms.
    np.testing.assert_allclose(errors.wasserstein(u, p, v, q), expected, rtol=1e-12)


def test_errors_are_relative_and_the_worst_counts(truth):
    exact = {"top": truth["top"], "bottom": truth["bottom"], "trace": truth["trace"]}
    assert errors.errors(exact, truth) == {"top1": 0, "top": 0, "bottom": 0, "trace": 0}
    off = np.array(truth["top"])
    off[7] *= 1.02
    found = errors.errors({"top": off, "trace": 0.9 * truth["trace"]}, truth)
    assert found["top1"] == 0
    np.testing.assert_allclose([found["top"], found["trace"]], [0.02, 0.1], rtol=1e-9)  # rounding


def test_too_few_values_are_no_answer(truth):
    found = errors.errors({"top": truth["top"][:1], "bottom": truth["bottom"][:1]}, truth)
    assert found == {"top1": 0}


def test_a_value_that_is_not_finite_reaches_nothing(truth):
    assert errors.errors({"trace": float("nan")}, truth) == {"trace": float("inf")}


def rung(method, index, seconds, **found):
    place = {"method": method, "rung": index, "documented": list(found)}
    return {**place, "seconds": seconds, "errors": found}


def test_the_cheapest_call_that_reaches_the_target_is_chosen():
    rungs = [
        rung("a", 0, 1.0, trace=0.1),
        rung("a", 1, 2.0, trace=0.009),
        rung("b", 0, 1.5, trace=0.01),
        rung("b", 1, 2.5, trace=0.004),
    ]
    assert plan.best(rungs, "trace", 1e-2)["method"] == "b"
    assert plan.best(rungs, "trace", 1e-3) is None


def test_a_rung_that_is_good_by_chance_is_not_chosen():
    chance = [rung("a", i, 1.0 + i, trace=e) for i, e in enumerate((0.005, 0.03, 0.008, 0.002))]
    assert plan.best(chance, "trace", 1e-2)["rung"] == 2


def test_one_call_serves_several_quantities():
    rungs = [
        rung("lanczos", 0, 1.0, top=0.001, density=0.5),
        rung("lanczos", 1, 3.0, top=0.001, density=0.01),
        rung("eigsh", 0, 0.5, top=0.001),
    ]
    # The density needs the higher rung, which has the eigenvalues too: no second call.
    found = plan.all_round(rungs, {"top": 1e-2, "density": 5e-2, "trace": 1e-2})
    assert found["calls"] == [["lanczos", 1]]
    assert found["missing"] == ["trace"]


def test_what_is_read_beyond_the_documentation_counts_only_there():
    beyond = rung("density", 0, 1.0, top=0.001, density=0.01)
    beyond["documented"] = ["density"]
    found = side_by_side.chosen("peer", {"rungs": [beyond]})
    assert found["documented"]["single"]["top 0.01"] is None
    assert found["any"]["single"]["top 0.01"]["method"] == "density"


def test_a_peer_is_held_against_the_quantities_that_it_reaches():
    found = {
        "rungs": [
            rung("spectrum", 0, 1.0, top=0.02, bottom=0.001, trace=0.001, density=0.01),
            rung("spectrum", 1, 2.0, top=0.001, bottom=0.001, trace=0.001, density=0.01),
            rung(side_by_side.LARGEST, 0, 0.5, top=0.001, trace=0.001, density=0.1),
            rung(side_by_side.LARGEST, 1, 0.8, top=0.001, trace=0.001, density=0.01),
            rung("trace", 0, 0.1, trace=0.001),
            rung("density", 0, 0.2, density=0.01),
        ]
    }
    picked = side_by_side.chosen("flatjax", found)["documented"]
    assert picked["all"]["calls"] == [["spectrum", 1]]
    assert picked["parts"]["top,trace,density"]["calls"] == [[side_by_side.LARGEST, 1]]
    assert picked["parts"]["bottom,trace"]["calls"] == [["spectrum", 0]]
    # What nobody would call `spectrum` for.
    assert sorted(picked["parts"]["trace,density"]["calls"]) == [["density", 0], ["trace", 0]]
    assert set(side_by_side.calls_of("flatjax", found)) >= {(side_by_side.LARGEST, 1)}
    # Only what some peer is held against is timed.
    peer = {"rungs": [rung("trace", 0, 1.0, trace=0.001), rung("density", 0, 1.0, density=0.01)]}
    parts = side_by_side.parts_of({"flatjax": found, "peer": peer})
    assert parts == {"trace,density"}
    timed = side_by_side.calls_of("flatjax", found, parts)
    assert (side_by_side.LARGEST, 1) not in timed
    assert {("trace", 0), ("density", 0), ("spectrum", 1)} <= set(timed)


@pytest.mark.parametrize(
    ("seconds", "met", "documented", "ends"),
    [
        (0.5, {"top": 0.005, "density": 0.02}, ["top", "density"], False),
        (0.5, {"top": 0.0005, "density": 0.005}, ["top", "density"], True),  # the tighter targets
        (1.1, {"top": 0.005, "density": 0.02}, ["top", "density"], True),  # a second was allowed
        (3.9, {"top": 0.02, "density": 0.02}, ["top", "density"], False),
        (4.1, {"top": 0.02, "density": 0.02}, ["top", "density"], True),
        (1.1, {"top": 0.02, "density": 0.02}, ["density"], True),  # nobody promised the top
    ],
)
def test_a_ladder_goes_on_longer_until_the_looser_target_is_met(seconds, met, documented, ends):
    facts = {"gives": ["top", "density"], "documented": documented}
    targets = {"top": (1e-2, 1e-3), "density": (5e-2, 1e-2)}
    found = side_by_side.is_enough({"seconds": seconds, "errors": met}, facts, targets, 1.0, 4.0)
    assert found is ends


def test_the_memory_of_a_process_is_its_own():
    """Not that of the one that started it, which holds JAX and more here."""
    code = "from benchmarks.peers import worker; print(worker.peak_bytes())"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=worker.ROOT, check=True, capture_output=True, text=True)
    assert 0 < int(found.stdout) < worker.peak_bytes() / 2


def test_every_method_of_flatjax_answers_what_it_says(own):
    for name, method in own.methods().items():
        assert method.ladder, name
        assert set(method.gives) <= set(errors.TARGETS), name


def test_one_spectrum_is_near_the_truth(own, truth):
    call = own.methods()["spectrum without options"].call
    runs = [call({}, seed).as_json() for seed in range(3)]
    wrong = [errors.errors(found, truth) for found in runs]
    assert set(wrong[0]) == {"top1", "top", "bottom", "trace", "density"}
    # Converged to residuals of 1e-3, whose squares over the gaps are the errors.
    assert max(w[name] for w in wrong for name in ("top1", "top", "bottom")) < 1e-2
    # All probes that it may take leave a standard error of 6 % here, where the trace is small
    # beside the Frobenius norm: twice that.
    assert np.median([w["trace"] for w in wrong]) < 0.13
    assert min(found["products"] for found in runs) > 30


def test_a_network_is_measured_from_end_to_end(own, task, truth, monkeypatch):
    class Inside:
        """The worker's requests answered in this process."""

        def __init__(self, system, threads, environment):
            del threads, environment
            self.ready, self.process = {"version": "0", "framework": "jax", "note": ""}, self
            if system != "flatjax":
                raise worker.Failure("ModuleNotFoundError: not here")

        def ask(self, timeout=0, **request):
            del timeout
            if request["do"] == "setup":
                gives = list(own.methods()["spectrum"].gives)
                facts = {"ladder": [{}], "gives": gives, "documented": gives}
                return {"methods": {"spectrum": facts, "spectrum without options": facts}}
            found = own.methods()["spectrum"].call(request["options"], request["seed"])
            return {"seconds": 1.0, "answer": found.as_json()}

        def close(self):
            pass

    monkeypatch.setattr(worker, "Worker", Inside)
    monkeypatch.setattr(side_by_side, "SEEDS", (0,))
    monkeypatch.setattr(side_by_side, "ROUNDS", 1)
    found = {s: side_by_side.calibrate(s, "-", truth, 5.0, False) for s in ("flatjax", "matfree")}
    timed = side_by_side.rounds(found, "-", truth)
    mine = side_by_side.summarise(found["flatjax"], timed["flatjax"])
    assert mine["documented"]["single"]["top 0.01"]["seconds"]["median"] == 1.0
    assert mine["plain"]["products"] > 30
    # A peer that is not there gets a row that says so.
    assert "not here" in side_by_side.summarise(found["matfree"], {})["failure"]


def test_a_system_that_cannot_start_says_why():
    with pytest.raises(worker.Failure, match="no system 'nothing'"):
        worker.Worker("nothing")


def test_tasks_survive_the_disk(task, tmp_path):
    tasks.save(tmp_path / "t.npz", task)
    again = tasks.read(tmp_path / "t.npz")
    assert (again.kind, list(again.params)) == (task.kind, list(task.params))
    np.testing.assert_array_equal(again.inputs, task.inputs)
