"""Solutions, kernels and closed forms are those of theory, and the claims can fail."""

import dataclasses

import numpy as np
import pytest

from experiments import random_features as experiment
from experiments.random_features import exact, images, least_squares, numbers

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [6, 15])
def test_the_solution_is_that_of_numpy(size):
    train, targets = RNG.normal(size=(10, size)), RNG.normal(size=(10, 2, 3))
    test = RNG.normal(size=(4, size))
    solved = least_squares.LeastSquares(train, targets)
    least, ridged = solved.predictions(test, [0.0, 0.7])
    flat = targets.reshape(10, 6)
    norm = np.linalg.lstsq(train, flat, rcond=None)[0]
    np.testing.assert_allclose(least.reshape(4, 6), test @ norm, rtol=1e-10, atol=1e-12)
    ridge = np.linalg.solve(train.T @ train + 0.7 * np.eye(size), train.T @ flat)
    np.testing.assert_allclose(ridged.reshape(4, 6), test @ ridge, rtol=1e-10, atol=1e-12)
    sizes = np.linalg.norm(solved.coefficients(), axis=0).ravel()
    np.testing.assert_allclose(sizes, np.linalg.norm(norm, axis=0))


def test_features_that_depend_on_others_are_cut():
    train = np.repeat(RNG.normal(size=(10, 3)), 2, axis=1)
    assert len(least_squares.LeastSquares(train, np.ones((10, 1))).values) == 3


@pytest.mark.parametrize("kind", least_squares.KINDS)
def test_the_kernel_is_the_limit_of_the_features(kind):
    inputs, rng = 3 * RNG.normal(size=(4, 5)), np.random.default_rng(1)
    count = 200_000
    drawn = least_squares.draw(kind, 5, count, rng)
    found = least_squares.features(kind, drawn, inputs, count)
    kernel = least_squares.limit_kernel(kind, inputs, inputs)
    # Five standard errors of a mean of products of at most some three standard deviations each.
    error = 15 * kernel.max() / np.sqrt(count)
    np.testing.assert_allclose(found @ found.T, kernel, atol=error)
    fewer = least_squares.features(kind, drawn, inputs, 7)
    ratio = np.sqrt(count / 7)
    np.testing.assert_allclose(fewer, ratio * found[:, :7])


def test_the_risk_is_the_mean_squared_distance():
    predictions, targets = RNG.normal(size=(2, 5, 3, 4)), RNG.normal(size=(5, 3, 4))
    found = least_squares.risk(predictions, targets)
    by_hand = [
        [
            np.mean([np.linalg.norm(p[i, k] - targets[i, k]) ** 2 for i in range(5)])
            for k in range(3)
        ]
        for p in predictions
    ]
    np.testing.assert_allclose(found, by_hand)


def test_weak_features_against_their_theory():
    betas = np.array([[0.5, 0.5, 0.5, 0.5] * 3, [0.9, 0.4, 0.1, 0.0] * 3])
    sizes, samples = (2, 4, 12), 8
    found = exact.weak_risk(betas, sizes, samples, 0.3, 6000, 0)
    theory = [[exact.weak_theory(beta, p, samples, 0.3) for p in sizes] for beta in betas]
    # Without the features left out, or the noise, theory would be a fifth lower at least.
    np.testing.assert_allclose(found, theory, rtol=0.05)
    assert exact.weak_theory(betas[0], 7, samples, 0.3) == np.inf
    # By hand: nothing left out, 12 features of 8 examples; and 2 of 12, with 2.25 + 0.09 of noise.
    assert theory[0][2] == pytest.approx(3 / 3 + 0.09 * (1 + 8 / 3))
    assert theory[0][0] == pytest.approx((2.5 + 0.09) * (1 + 2 / 5))


def test_one_draw_of_weak_features_by_the_pseudoinverse():
    beta = np.array([1.0, -0.5, 0.25, 0.3])
    rng = np.random.default_rng([3, 1])
    inputs = rng.standard_normal((1, 3, 4))
    targets = inputs @ beta + 0.5 * rng.standard_normal((1, 3, 1))[..., 0]
    for size in (2, 4):
        found = exact.weak_risk(beta[None], [size], 3, 0.5, 1, 3)
        solution = np.linalg.pinv(inputs[0, :, :size]) @ targets[0]
        off = np.square(solution - beta[:size]).sum() + np.square(beta[size:]).sum()
        assert found[0, 0] == pytest.approx(off + 0.25)


def test_one_draw_of_ridge_regression_by_its_normal_equations():
    beta = np.array([1.0, -0.5, 0.25])
    rng = np.random.default_rng([3, 2])
    inputs = rng.standard_normal((1, 5, 3))[0]
    drawn = 0.5 * rng.standard_normal((1, 5, 1))[0, :, 0]
    found = exact.ridge_risk(beta, [2, 5], np.array([0.3, 2.0]), 0.5, 1, 3)
    for j, size in enumerate((2, 5)):
        x, y = inputs[:size], inputs[:size] @ beta + drawn[:size]
        for k, ridge in enumerate((0.3, 2.0)):
            solution = np.linalg.solve(x.T @ x + ridge * np.eye(3), x.T @ y)
            risk = np.square(solution - beta).sum() + 0.25
            assert found[j, k] == pytest.approx(risk)


def test_theory_of_the_best_ridge():
    # Where examples are many, sigma^2 (1 + d / n); where there are none, sigma^2 + |beta|^2.
    assert exact.ridge_theory(10, 1e5, 1.0, 0.5) == pytest.approx(0.25 * (1 + 1e-4), rel=1e-6)
    assert exact.ridge_theory(10, 1e-4, 2.0, 0.5) == pytest.approx(4.25, rel=1e-4)
    beta, best = np.full(40, 40**-0.5), 0.25 * 40
    found = exact.ridge_risk(beta, [20, 60], np.array([best / 4, best, best * 4]), 0.5, 400, 0)
    np.testing.assert_array_equal(found.argmin(1), 1)
    theory = [exact.ridge_theory(40, n, 1.0, 0.5) for n in (20, 60)]
    np.testing.assert_allclose(found[:, 1], theory, rtol=0.03)


def test_on_images():
    config = experiment.lab.presets["smoke"]
    found = images.on_images(config, 0)
    for kind in least_squares.KINDS:
        assert found[kind]["test"].shape == (3, 5)
        train = found[kind]["train"]
        assert train[:, 3:].max() < 1e-20 < train[:, 0].min()
        assert (found[kind]["ridge"] <= found[kind]["test"]).all()
    assert found["samples"]["test"].shape == (3, 3)
    # The same fit once more, by hand.
    seed = images.Images(config, 0)
    drawn = seed.draw("ReLU", 40)
    train = seed.solved("ReLU", drawn, 24, 20)[1]
    a = np.linalg.lstsq(train, seed.targets[:20, 1], rcond=None)[0]
    test = least_squares.features("ReLU", drawn, seed.data.test_inputs, 24)
    risk = np.square(test @ a - seed.test_targets[:, 1]).sum(-1).mean()
    assert found["ReLU"]["test"][1, 3] == pytest.approx(risk)
    assert found["ReLU"]["norm"][1, 3] == pytest.approx(np.linalg.norm(a))
    wrong = (test @ a).argmax(-1) != seed.data.test_targets
    assert found["ReLU"]["error"][1, 3] == pytest.approx(wrong.mean())
    # More wrong labels, and the same examples.
    differ = (seed.targets.argmax(-1) != seed.data.clean_targets[:, None]).mean(0)
    np.testing.assert_allclose(differ, config.noises, atol=0.02)


def test_an_ensemble_of_one_gains_nothing():
    config = dataclasses.replace(experiment.lab.presets["smoke"], members=1)
    found = images.ensemble(config, images.Images(config, 0))
    np.testing.assert_allclose(found["ratio"], 1)
    np.testing.assert_allclose(found["ridge_ratio"], 1)


def test_an_ensemble_of_three_and_the_best_ridge_by_hand():
    config = experiment.lab.presets["smoke"]
    seed = images.Images(config, 0)
    each = [seed.solved("ReLU", seed.draw("ReLU", 20, k), 20, 20)[2] for k in range(3)]
    alone = np.mean([least_squares.risk(one, seed.test_targets) for one in each], axis=0)
    together = least_squares.risk(np.mean(each, axis=0), seed.test_targets)
    ratio = images.ensemble(config, seed)["ratio"]
    np.testing.assert_allclose(ratio, together[0] / alone[0], rtol=1e-6)
    fit = seed.fit("ReLU", seed.draw("ReLU", 20, 0), 20, 20)
    best = least_squares.risk(each[0], seed.test_targets).min(0)
    np.testing.assert_allclose(fit["ridge"], best, rtol=1e-6)
    ridge = numbers.theory_ridges()[numbers.best_ridge(experiment.Config())]
    assert ridge == pytest.approx(0.25 * 50, rel=0.13)


def _runs(config, *, place=300, weak=1.0, step=0, slope=1.0, members=0.05, clean=0.3, fit=1e-28):
    """Curves of theory's shape with their peak at `place` features."""
    counts = np.array(config.counts, float)
    spread = np.array([0.99, 1.0, 1.01])[:, None, None]
    gap = abs(np.log(counts / place))
    shape = (1 + 1e3 * (gap == 0) + 1 / (gap + 0.05)) * spread + np.zeros((3, 3, 1))
    last = np.where(counts == counts[-1], np.array([clean, 1.0, 2.0])[:, None], 1.0)
    falling = np.exp(-np.log(counts)) * spread + np.zeros((3, 3, 1))
    train = np.where(counts >= 300, fit, falling)
    of_kind = {
        "test": shape * last, "norm": shape, "train": train, "ridge": falling, "error": shape,
        "limit": np.ones((3, 3)),
    }  # fmt: skip
    sizes = np.array(config.sample_sizes, float)
    more = {
        "test": (1 + 100 * (sizes == place)) * spread + np.zeros((3, 3, 1)),
        "ridge": spread / sizes + np.zeros((3, 3, 1)),
    }
    runs = dict.fromkeys(least_squares.KINDS, of_kind) | {"samples": more}
    runs["ensemble"] = {"ratio": np.full((3, 3), members), "ridge_ratio": np.ones((3, 3))}
    runs["weak"] = {
        name: np.tile([weak * exact.weak_theory(b, p, 40, 0.2) for p in config.weak_sizes], (3, 1))
        for name, b in zip(numbers.WEAK, numbers.weak_betas(config), strict=True)
    }
    n = np.array(config.ridge_sizes, float)
    best = np.array([exact.ridge_theory(50, size, 1.0, 0.5) for size in n]) ** slope
    off = np.log(numbers.theory_ridges() / numbers.theory_ridges()[numbers.best_ridge(config)])
    off = off - step * np.log(10) / 10
    bump = 1 + off**2 * (1 + 10 * (n == 50))[:, None]
    runs["ridge"] = {"test": np.tile(best[:, None] * bump, (3, 1, 1))}
    return runs


def _verdicts(**changes):
    config = experiment.Config(seeds=3)
    return {
        v.claim.name: v.verdict for v in experiment.lab.judged(_runs(config, **changes), config)
    }


def _failing(**changes):
    return {name for name, verdict in _verdicts(**changes).items() if verdict != "reproduced"}


def test_verdicts_on_made_up_runs():
    assert not _failing()
    kinds = ("fourier", "relu")
    places = {f"{kind}-{what}" for kind in kinds for what in ("peaks-at-n", "norm-peaks-at-n")}
    heights = {f"{kind}-height" for kind in kinds}
    moved = _failing(place=320)
    assert places | heights | {"norm-falls"} <= moved
    assert _failing(clean=0.9) == {f"{kind}-second-descent" for kind in kinds}
    assert _failing(fit=1e-12) == {"fits-exactly"}
    assert _failing(members=0.3) == {"ensemble"}
    assert _failing(weak=1.04) == _failing(weak=0.96) == {"weak-features"}
    assert _failing(step=2) >= {"best-ridge"}
    assert _failing(step=-2) >= {"best-ridge"}
    assert {"monotone-under-it", "risk-under-it"} <= _failing(slope=-1.0)
    assert "more-data-hurts" in _failing(place=450)


def test_ridge_that_leaves_the_peak_or_nothing_to_remove():
    config = experiment.Config(seeds=3)
    runs = _runs(config)
    for kind in least_squares.KINDS:
        runs[kind] = runs[kind] | {"ridge": runs[kind]["test"]}
    found = {v.claim.name: v.verdict for v in experiment.lab.judged(runs, config)}
    assert found["ridge-removes-the-peak"] == "not reproduced"
    assert found["relu-peaks-at-n"] == found["fourier-height"] == "void"


def test_numbers_by_hand():
    config = experiment.Config(seeds=3)
    runs = _runs(config)
    counts = np.array(config.counts)
    norm = np.where(counts == 300, 50.0, np.where(counts == 2000, 5.0, 1.0))
    for kind, factor in zip(least_squares.KINDS, (1.0, 3.0), strict=True):
        runs[kind] = runs[kind] | {"norm": np.tile(norm**factor, (3, 3, 1))}
    np.testing.assert_allclose(numbers.norm_falls(runs, config), 1)
    test = np.tile(np.where(counts == 150, 0.5, np.where(counts == 600, 0.1, 2.0)), (3, 3, 1))
    runs["ReLU"]["test"] = test
    np.testing.assert_allclose(numbers.height("ReLU", "test")(runs, config), np.log10(4))
    np.testing.assert_allclose(numbers.second_descent("ReLU", 0)(runs, config), 4)
    np.testing.assert_allclose(numbers.more_data("test")(runs, config), np.log10(101))
    train = np.where(counts == 320, 3.0, np.where(counts == 280, 7.0, 0.0))
    for kind in least_squares.KINDS:
        runs[kind]["train"] = np.tile(train, (3, 3, 1))
    np.testing.assert_allclose(numbers.train_risk(runs, config), 3)
    np.testing.assert_allclose(numbers.train_risk_before(runs, config), 7)
    ratio = np.where(counts == 450, 1.5, 1.0)
    for kind in least_squares.KINDS:
        runs[kind]["ridge"] = np.tile(ratio, (3, 3, 1))
    np.testing.assert_allclose(numbers.largest_rise("ridge")(runs, config), 0.5)
