"""The search for missed pairs: what a random vector's sweep would have shown of them."""

import math

import numpy as np
import pytest
import scipy.stats

from flatjax.linalg.krylov._search import Search, Shown, hidden, least_steps, skipped, thresholds


def lanczos(matrix, start, steps):
    """Explicit Lanczos: the vectors and the next one in rows, diagonal and off-diagonal."""
    rows, alphas, betas = [start / np.linalg.norm(start)], [], []
    for _ in range(steps):
        w = matrix @ rows[-1]
        alphas.append(rows[-1] @ w)
        for _ in range(2):
            w = w - np.array(rows).T @ (np.array(rows) @ w)
        betas.append(np.linalg.norm(w))
        rows.append(w / betas[-1])
    return np.array(rows), np.array(alphas), np.array(betas)


def tridiagonal(alphas, betas):
    return np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1)


def case(size=30, steps=6):
    rng = np.random.default_rng(0)
    values = np.append(np.linspace(-1, 1, size - 2), [2.0, -1.7])
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    matrix = basis * values @ basis.T
    return basis, matrix, *lanczos(matrix, rng.standard_normal(size), steps)


def test_the_polynomials_are_the_components_of_an_eigenvector():
    basis, _, rows, alphas, betas = case()
    found = Search(2.0, -1.7, 30).polynomials(tridiagonal(alphas, betas), betas[-1])
    assert found.shape == (2, 7)
    for x, polynomials in zip((basis[:, -2], basis[:, -1]), found, strict=True):
        components = rows @ x
        np.testing.assert_allclose(polynomials, components / components[0], rtol=1e-9)
        assert components[0] ** 2 * np.square(polynomials).sum() <= 1


def test_they_survive_a_restart():
    basis, matrix, rows, alphas, betas = case()
    t = tridiagonal(alphas, betas)
    kept = np.linalg.eigh(t)[1][:, -2:]
    search = Search(2.0, -math.inf, 30)
    search.restarted(t, betas[-1], kept)
    # Two Ritz vectors and the next one, and what a product makes of that, by hand.
    active = np.concatenate([kept.T @ rows[:-1], rows[-1:]])
    w = matrix @ rows[-1]
    w = w - active.T @ (active @ w)
    beta = np.linalg.norm(w)
    found = search.polynomials(active @ matrix @ active.T, beta)
    components = np.append(active, [w / beta], axis=0) @ basis[:, -2]
    np.testing.assert_allclose(found[0], components / (rows[0] @ basis[:, -2]), rtol=1e-9)


def test_the_verdict_is_a_component_100_times_below_a_random_one():
    _, _, _, alphas, betas = case()
    t = tridiagonal(alphas, betas)
    values = np.linalg.eigvalsh(t)
    search = Search(3.0, -math.inf, 30)
    squares = np.square(search.polynomials(t, betas[-1])).sum()
    left = search.left(t, betas[-1], values, 1e-9)
    assert left == pytest.approx(math.log(100**2 * 30) - math.log(squares))
    # The worst of the thresholds counts.
    both = Search(3.0, -2.0, 30).left(t, betas[-1], values, 1e-9)
    assert both == pytest.approx(Search(math.inf, -2.0, 30).left(t, betas[-1], values, 1e-9))
    assert both > left


def test_a_value_beyond_a_threshold_is_no_verdict():
    t = np.diag([1.0, 3.0])
    for ends in ((2.0, -math.inf), (math.inf, 2.0), (3.0, -math.inf)):
        assert Search(*ends, 10).left(t, 0.0, np.array([1.0, 3.0]), 1e-6) == math.inf


def test_an_exhausted_space_is_one():
    # After a coupling of zero nothing of the start is left that has not been seen.
    t = np.diag([1.0, 0.5])
    search = Search(2.0, -math.inf, 10)
    assert search.left(t, 0.0, np.array([0.5, 1.0]), 1e-6) == -math.inf
    search.restarted(t, 0.0, np.eye(2)[:, :1])
    assert search.left(t[:1, :1], 0.0, np.ones(1), 1e-6) == -math.inf


@pytest.mark.parametrize(
    ("which", "values", "given", "expected"),
    [
        ("LA", [9.0, 7.0, 4.0], False, (7.0, -np.inf)),  # a further 4 would change nothing
        ("LA", [9.0, 7.0, 4.0], True, (4.5, -np.inf)),
        ("LA", [9.0, 4.1, 4.0], False, (9.0, -np.inf)),  # a further 4.1 changes little
        ("LA", [4.8, 4.4, 4.0], False, (np.inf, -np.inf)),  # as of any of these
        ("LA", [4.2, 4.1, 4.0], False, (4.5, -np.inf)),  # one value, as far as is known
        ("LA", [9.0], False, (np.inf, -np.inf)),
        ("LA", [9.0], True, (9.5, -np.inf)),
        ("SA", [-9.0, -7.0, 4.0], False, (np.inf, -7.0)),
        ("BE", [9.0, 7.0, -5.0], False, (9.0, -np.inf)),
        ("BE", [9.0, 7.0, -5.0, -3.0], False, (9.0, -5.0)),
        ("BE", [9.0, -5.0], True, (9.5, -5.5)),
        ("LM", [-9.0, 7.0, 4.0], False, (7.0, -7.0)),
        ("LM", [-9.0], False, (np.inf, -np.inf)),
        ("LM", [-9.0], True, (9.5, -9.5)),
    ],
)
def test_what_would_change_the_list(which, values, given, expected):
    margin = np.full(len(values), 0.5)
    assert thresholds(np.array(values), which, margin, given) == expected


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("count", [1, 3])
def test_too_heavy_values_have_skipped_some(which, count):
    # The last of four lies far from the first `count`, which weigh as one eigenvector more may.
    values = np.append(np.linspace(9.2, 9.0, count), [*np.full(4 - count, 5.0), 1.0, 0.0])
    heaviest = scipy.stats.chi2.ppf(0.99, count)
    k = 4
    if which == "BE":
        values, k = np.concatenate([values, -values]), 8
    if which == "SA":
        values = -values
    weights = np.where(np.abs(values) >= 9, heaviest / count, 0.5)

    def found(factor, bound=0.3):
        bounds = np.full(len(values), bound)
        return skipped(values, factor * weights, bounds, k, which)

    # Wilson and Hilferty's quantiles are good to 1 %.
    assert found(1.02)
    assert not found(0.98)
    assert not found(1.02, bound=8.5)  # wherever they are, the list is right to its bounds
    single = np.where(np.abs(values) >= 9, 0, weights)
    assert not skipped(values, single, np.full(len(values), 0.3), k, which)


@pytest.mark.parametrize(("gap", "spread", "size"), [(0.1, 2.0, 100), (1.0, 1.0, 10**6)])
def test_the_expected_steps_are_those_of_chebyshev(gap, spread, size):
    # T_s(x) = cosh(s arccosh x) exceeds 100 sqrt(n) at this s, up to e^-s beside e^s.
    needed = math.acosh(100 * math.sqrt(size)) / math.acosh(1 + 2 * gap / spread)
    rest = np.array([0.0, spread / 2, spread])
    assert least_steps(spread + gap, -np.inf, rest, size) == pytest.approx(needed, rel=1e-6)
    assert least_steps(np.inf, -gap, rest, size) == pytest.approx(needed, rel=1e-6)
    assert least_steps(spread, -np.inf, rest, size) == np.inf
    assert least_steps(1.0, -np.inf, np.zeros(0), size) == 1


def shown(alphas, betas):
    """What an explicit run has shown."""
    values, s = np.linalg.eigh(tridiagonal(alphas, betas))
    return Shown(values, betas[-1] * s[-1], s[0])


def test_a_component_of_the_start_is_that_of_the_next_vector():
    basis, _, rows, alphas, betas = case()
    values, couplings, start = shown(alphas, betas)
    for x, mu in ((basis[:, -2], 2.0), (basis[:, -1], -1.7)):
        along = (x @ rows[-1]) * (start * couplings / (mu - values)).sum()
        assert along == pytest.approx(x @ rows[0], rel=1e-9)


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
def test_nothing_stays_hidden_once_the_bound_is_that_of_1_in_100(which):
    _, _, _, alphas, betas = case(size=200, steps=16)
    run = shown(alphas, betas)
    values, margin = run.values, 0.5
    wanted = values[[-1, 0]] if which == "BE" else values[[0 if which == "SA" else -1]]
    low, high = values[0] - margin, values[-1] + margin
    points = {"LA": [high], "SA": [low], "LM": [high, -high], "BE": [high, low]}[which]
    # By hand: the largest component that a value at the points may have.
    bounds = []
    for point in points:
        shares = run.couplings / (point - values)
        bounds.append((run.start * shares).sum() ** 2 / (1 + (shares**2).sum()))

    def lacking(size):
        return run.lacking(wanted, np.full(len(wanted), margin), which, size)

    lightest = scipy.stats.chi2.ppf(0.01, 1)
    edge = lightest / max(bounds)  # the dimension in which a random vector is as light
    found = lacking(edge)
    assert [sign * point for sign, point, _ in found] == pytest.approx(points)
    assert max(left for *_, left in found) == pytest.approx(0, abs=1e-3)  # 1.57e-4 is rounded
    assert [left for *_, left in lacking(9 * edge)] == pytest.approx(
        [left + math.log(3) for *_, left in found]
    )


def test_the_steps_until_nothing_is_hidden_are_those_of_chebyshev():
    rest = np.array([-1.0, 0.0, 2.0])
    growth = {1: math.acosh(1 + 2 * 0.5 / 3), -1: math.acosh(1 + 2 * 0.2 / 3)}
    for sign, point in ((1, 2.5), (-1, 1.2)):
        assert hidden([(sign, point, 2.0)], rest) == pytest.approx(2.0 / growth[sign])
    both = [(1, 2.5, 2.0), (-1, 1.2, 1.0)]
    assert hidden(both, rest) == pytest.approx(max(2 / growth[1], 1 / growth[-1]))
    assert hidden([(1, 2.5, 0.01)], rest) == 1  # a step at least
    assert hidden([(1, 2.5, -0.1), (-1, 1.2, 0.0)], rest) == 0
    assert hidden([(1, 1.9, 0.1)], rest) == math.inf  # inside of the rest it may always be
    assert hidden([(1, 2.5, math.nan)], rest) > 0
