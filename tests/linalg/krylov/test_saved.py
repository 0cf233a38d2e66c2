"""Runs that go on as if nothing had been in between, from a checkpoint too."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from orbax.checkpoint import v1 as ocp

import flatjax
from flatjax.linalg import EigshState, Lanczos, eigsh, lanczos
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._saved import Host
from tests.linalg.test_lanczos import start
from tests.problems import SIZE, problem, zoo

KEY = jax.random.key(3)
FEW = {"k": 2, "num_bottom": 1, "trace_rtol": None, "key": KEY}


def solve(p, k, **options):
    return eigsh(p.op, k, structure=p.structure, **options)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def answer(found):
    """All that is to be equal bit for bit."""
    return found._replace(num_products=0, state=None)


@pytest.mark.parametrize("first", [8, 13, 18, 21])
@pytest.mark.parametrize(
    ("name", "k", "options"),
    [
        ("network", 5, {"max_basis": 8, "tol": 1e-5, "max_products": 400}),  # with restarts
        ("multiple", 3, {}),  # with searches for copies, which find some
    ],
)
def test_an_interrupted_run_is_an_uninterrupted_one_bit_for_bit(name, k, options, first):
    p = zoo(name)
    whole = solve(p, k, key=KEY, **options)
    assert whole.state is None
    part = solve(p, k, key=KEY, **options | {"max_products": first}, keep_state=True)
    assert part.num_products == int(part.state.num_products) <= first < whole.num_products
    found = solve(p, k, resume=part.state, **options | {"max_basis": None})
    same(answer(found), answer(whole))
    looked = part.num_products - 1 - int(_host(part.state).products)  # in a look that is taken anew
    assert found.num_products == whole.num_products + 1 + looked
    # It is the caller's, and may be used another time.
    assert not any(a.is_deleted() for a in jax.tree.leaves(part.state))


def _host(state):
    return Host.of(state.host, state.run.alphas.shape[0])


@pytest.mark.parametrize("max_basis", [8, None])  # with restarts before and after, and without
def test_the_state_is_that_of_one_run(max_basis):
    p, options = zoo("network"), {"tol": 1e-5, "keep_state": True}
    part = solve(p, 5, key=KEY, max_basis=max_basis, max_products=13, **options)
    found = solve(p, 5, resume=part.state, max_products=18, **options)
    whole = solve(p, 5, key=KEY, max_basis=max_basis, max_products=17, **options)
    same(found.state.run, whole.state.run)
    same(_host(found.state), _host(whole.state))
    assert _host(found.state).restarted == (max_basis == 8)
    assert int(found.state.num_products) == int(whole.state.num_products) + 1


def test_one_product_more_is_the_certificate():
    p = zoo("multiple")  # between two looks, eight steps apart
    part = solve(p, 6, key=KEY, max_products=18, keep_state=True)
    host = _host(part.state)
    assert 0 < host.taken < host.steps
    assert solve(p, 6, resume=part.state, max_products=19).num_products == 19


@pytest.mark.parametrize("at", [7, 12, 20])
def test_a_stopped_run_goes_on(at):
    p, options = zoo("network"), {"tol": 1e-5, "max_basis": 8}
    stop = lambda step, values, residuals: step >= at  # noqa: E731
    part = solve(p, 5, key=KEY, keep_state=True, callback=stop, **options)
    assert part.stopped == "callback"
    seen = []
    found = solve(p, 5, resume=part.state, tol=1e-5, callback=lambda *told: seen.append(told[0]))
    whole = solve(p, 5, key=KEY, **options)
    same(answer(found), answer(whole))
    assert found.stopped is None
    assert seen[0] >= int(_host(part.state).products)


def test_one_product_at_a_time():
    p, products = zoo("network"), 9
    whole = solve(p, 3, key=KEY)
    found = solve(p, 3, key=KEY, max_products=products, keep_state=True)
    while not np.asarray(found.converged).all():
        products = found.num_products + 2  # one step, and one for the certificate
        found = solve(p, 3, resume=found.state, max_products=products, keep_state=True)
        assert found.num_products == products
    assert products > 13
    same(answer(solve(p, 3, resume=found.state)), answer(whole))


def test_a_smaller_tolerance_more_pairs_and_other_ones():
    with jax.enable_x64(True):
        p = zoo("network", dtype=jnp.float64)
        loose = solve(p, 2, key=KEY, tol=1e-1, keep_state=True)
        tight = solve(p, 2, resume=loose.state, tol=1e-11)
        assert float(loose.residual_norms.max()) > 1e-8
        assert bool((tight.residual_norms <= 1e-11 * np.abs(tight.values)).all())
        np.testing.assert_allclose(tight.values, p.wanted(2, "LA"), rtol=1e-13)
        alone = solve(p, 2, key=KEY, tol=1e-11).num_products
        # The first certificate and its look for missed pairs come on top; nothing else.
        assert tight.num_products - loose.num_products < alone
        for k, which in ((5, "LA"), (4, "BE"), (2, "SA")):
            more = solve(p, k, which=which, resume=loose.state, tol=1e-9)
            assert bool(more.converged.all())
            np.testing.assert_allclose(more.values, p.wanted(k, which), rtol=1e-8)


def test_other_pairs_after_restarts_are_not_skipped():
    # A restart drops what the start vector weighs on them: the search must not count on it.
    p = zoo("network")
    part = solve(p, 2, key=KEY, max_basis=8, tol=1e-6, max_products=40, keep_state=True)
    assert _host(part.state).restarted
    for k, which in ((5, "LA"), (3, "SA"), (5, "BE")):
        found = solve(p, k, which=which, resume=part.state, max_products=600, keep_state=True)
        assert _host(found.state).given
        assert bool(found.converged.all())
        np.testing.assert_allclose(found.values, p.wanted(k, which), rtol=2e-3, atol=1e-5)


def test_a_given_start_vector_stays_one_that_may_be_blind():
    p = problem(np.r_[10.0, 9.0, np.linspace(0, 1, SIZE - 2)])
    # In the complement of the largest eigenvector: only a look from a random vector finds it.
    q, top = np.linalg.eigh(p.matrix())[1], np.random.default_rng(0).standard_normal(SIZE)
    blind = top - q[:, -1] * (q[:, -1] @ top)
    v0 = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), p.structure))[1](
        jnp.asarray(blind, jnp.float32)
    )
    part = solve(p, 2, v0=v0, max_products=6, keep_state=True)
    found = solve(p, 2, resume=part.state, keep_state=True)
    assert _host(found.state).given
    np.testing.assert_allclose(found.values, [10, 9], rtol=1e-5)


def test_the_whole_space_goes_on_without_a_product():
    d = jnp.arange(1.0, 9.0)
    calls = []

    def product(v):
        calls.append(1)
        return d * v

    op = flatjax.operators.as_operator(product, structure=d)
    whole = eigsh(op, 2, key=KEY, keep_state=True)
    found = eigsh(op, 8, resume=whole.state)
    np.testing.assert_allclose(found.values, d[::-1], rtol=1e-5)
    assert found.num_products == whole.num_products + 1


@pytest.mark.parametrize("change", [1e-3, 0.3])
@pytest.mark.parametrize("kind", ["eigsh", "spectrum"])
def test_another_operator_is_told(kind, change):
    """Such as that of other params: its products are off by far more than their noise."""
    p, other = zoo("network"), zoo("network", scale=1 - change)
    part = solve(p, 2, key=KEY, keep_state=True) if kind == "eigsh" else _spectrum(p, 12)
    # At least rounding: without it an operator that happens to be exact would refuse itself.
    assert float(part.state.noise_floor) == float(part.noise_floor) > 0
    with pytest.raises(ValueError, match=r"run of another operator.*same params"):
        solve(other, 2, resume=part.state) if kind == "eigsh" else _spectrum(other, 20, part.state)


def _lanczos(p, steps, resume=None):
    v0 = start(p.structure) if resume is None else None
    return lanczos(p.op, v0, steps, resume=resume, structure=p.structure)


def _spectrum(p, steps, resume=None):
    return flatjax.spectrum(p.op, num_steps=steps, resume=resume, structure=p.structure, **FEW)


@pytest.fixture(scope="module")
def states():
    """Of every kind after a few products, with the function that goes on from it."""
    p = zoo("network")
    kept = {
        "eigsh": solve(p, 3, key=KEY, max_products=9, keep_state=True).state,
        "lanczos": _lanczos(p, 6),
        "spectrum": _spectrum(p, 12).state,
    }
    on = {
        "eigsh": lambda resume: answer(solve(p, 3, resume=resume)),
        "lanczos": lambda resume: _lanczos(p, 12, resume),
        "spectrum": lambda resume: _spectrum(p, 20, resume).state,
    }
    return kept, on, {name: on[name](state) for name, state in kept.items()}


def test_states_go_through_checkpoints(states, tmp_path):
    kept, on, expected = states
    ocp.save(tmp_path / "typed", kept)
    ocp.save(tmp_path / "plain", jax.device_get(kept))
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding)
        if isinstance(a, jax.Array) else a, kept
    )  # fmt: skip
    typed = ocp.load(tmp_path / "typed", abstract)
    plain = ocp.load(tmp_path / "plain")  # without types: nested dictionaries of arrays
    assert isinstance(typed["eigsh"], EigshState)
    assert not isinstance(plain["eigsh"], EigshState)
    for name, state in kept.items():
        for restored in (typed, plain, pickle.loads(pickle.dumps({name: state}))):
            same(on[name](restored[name]), expected[name])


def test_a_basis_in_parts_and_a_plain_mapping(monkeypatch):
    monkeypatch.setattr(krylov, "SMALL", 0)  # numbers up to which a run begins with all its rows
    p = zoo("network")
    state = _spectrum(p, 40).state
    assert len(state.run.basis.parts) == 2
    vector = {str(i): a for i, a in enumerate(state.run.vector)}
    basis = {"parts": [{str(i): a for i, a in enumerate(part)} for part in state.run.basis.parts]}
    plain = {
        "run": state.run._asdict() | {"basis": basis, "vector": vector},
        "num_products": state.num_products,
        "noise_floor": state.noise_floor,
    }
    same(_spectrum(p, 44, plain).state, _spectrum(p, 44, state).state)


def test_lanczos_goes_on_inside_jit():
    p = zoo("network")
    run = _lanczos(p, 6)
    traced = jax.jit(lambda run: _lanczos(p, 12, run))(run)
    np.testing.assert_allclose(traced.alphas, _lanczos(p, 12).alphas, rtol=1e-4, atol=1e-5)
    assert int(traced.num_products) == 12


def _other(dtype, size):
    return problem(np.linspace(1, 2, size), dtype=dtype)


@pytest.mark.parametrize("kind", ["eigsh", "lanczos", "spectrum"])
def test_a_state_that_does_not_fit_is_refused(states, kind):
    kept = states[0][kind]
    call = {
        "eigsh": lambda p, resume: solve(p, 2, resume=resume),
        "lanczos": lambda p, resume: _lanczos(p, 12, resume),
        "spectrum": lambda p, resume: _spectrum(p, 20, resume),
    }[kind]
    with pytest.raises(ValueError, match=r"resume is no run of this operator.*shape"):
        call(_other(jnp.float32, SIZE + 8), kept)
    with jax.enable_x64(True), pytest.raises(ValueError, match="resume was computed in float32"):
        call(_other(jnp.float64, SIZE), kept)
    with pytest.raises(TypeError, match=r"resume must be of type (.*State|Lanczos) "):
        call(zoo("network"), kept[0])
    fields = kept._asdict()
    with pytest.raises(TypeError, match=r"it lacks .*num_products"):
        call(zoo("network"), {name: a for name, a in fields.items() if name != "num_products"})


def test_damaged_states_are_refused(states):
    state, p = states[0]["eigsh"], zoo("network")
    with pytest.raises(ValueError, match=r"resume.host is uint32 of shape"):
        solve(p, 2, resume=state._replace(host=state.host[1:]))
    short = state.run._replace(basis=jax.tree.map(lambda a: a[1:], state.run.basis))
    with pytest.raises(ValueError, match="resume is damaged: its basis"):
        solve(p, 2, resume=state._replace(run=short))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"v0": jnp.ones(3)}, ValueError, "leave v0 out"),
        ({"max_products": 9}, ValueError, "has spent 9 products already"),
        ({"max_basis": 40}, ValueError, "holds max_basis=32 vectors and max_basis=40"),
        ({"k": 31}, ValueError, "31 pairs need at least 33: begin anew"),
        ({"block_size": 2}, ValueError, "leave block_size at 1"),
    ],
)
def test_bad_input(states, options, error, text):
    p = zoo("network")
    with pytest.raises(error, match=text):
        eigsh(p.op, **{"k": 2, "resume": states[0]["eigsh"], "structure": p.structure} | options)


def test_not_inside_jit_and_not_after_what_is_not_finite(states):
    p = zoo("network")
    for call in (
        lambda: solve(p, 2, key=KEY, keep_state=True),
        lambda: solve(p, 2, resume=states[0]["eigsh"]),
    ):
        with pytest.raises(TypeError, match=r"call eigsh outside jit, or use flatjax.lanczos"):
            jax.jit(call)()
    nan = eigsh(lambda v: jnp.nan * v, 1, key=KEY, keep_state=True, structure=jnp.ones(9))
    assert nan.state is None


def test_lanczos_refuses():
    p = zoo("network")
    run = _lanczos(p, 6)
    with pytest.raises(ValueError, match="resume has 6 Lanczos steps already"):
        _lanczos(p, 5, run)
    with pytest.raises(ValueError, match="pass None as v0"):
        lanczos(p.op, start(p.structure), 9, resume=run, structure=p.structure)
    with pytest.raises(ValueError, match="exceeds the dimension"):
        _lanczos(p, SIZE + 1, run)
    assert isinstance(_lanczos(p, 6, run), Lanczos)
