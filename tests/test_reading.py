"""Results read: every public type is short, says what counts, and forces nothing."""

import copy
import dataclasses
import html.parser
import inspect
import pickle
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax._reading import readable
from flatjax.operators._maps import LinearMap
from tests.repository import public_names

# What is made to be called, not to be read: their own texts are those of plain settings.
CALLED = (LinearMap, flatjax.OutputLoss, flatjax.Ascent, type(flatjax.track()))


def _result_types():
    """The public types with fields, and the types with fields that public functions return."""
    found = {}
    for item in public_names():
        types = [item.value] if inspect.isclass(item.value) else []
        if inspect.isfunction(item.value):
            returned = typing.get_type_hints(item.value).get("return")
            types = [returned, *typing.get_args(returned)]
        for cls in types:
            own = inspect.isclass(cls) and cls.__module__.startswith("flatjax.")
            fields = own and (hasattr(cls, "_fields") or dataclasses.is_dataclass(cls))
            if fields and not issubclass(cls, CALLED):
                found[cls.__name__] = cls
    return list(found.values())


TYPES = _result_types()
NETWORK = {f"layer_{i}": np.full((30, 40), 1.2345678) for i in range(100)}
# What a field may hold: the size of the text must not depend on it.
CONTENTS = {
    "tree": NETWORK,
    "trees": [NETWORK, NETWORK],
    "scalar": jnp.float32(1.2345678),
    "few": np.linspace(-1, 1, 5),
    "some": np.linspace(-1, 1, 1000),
    "many": np.zeros((100, 10_000), np.float32),
    "by_layer": {f"layer_{i}": np.float32(i) for i in range(100)},
    "nothing": None,
    "shape": jax.ShapeDtypeStruct((3, 4), jnp.bfloat16),
    "shapes": jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), NETWORK),
    "key": jax.random.key(0),
    "text": "word " * 2000,
    "texts": ("word " * 2000,) * 20,
    "integer": 123_456_789,
    "bfloat16": jnp.zeros(5, jnp.bfloat16),
    "not_finite": np.array([np.nan, np.inf, -np.inf]),
    "complex": np.zeros(3, complex),
    "function": len,
}


def made(cls, content):
    """A result with the same in all fields, whatever its constructor would say to it."""
    if hasattr(cls, "_fields"):
        return cls(*[content] * len(cls._fields))
    result = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(result, field.name, content)
    return result


def test_the_results_are_found():
    names = {cls.__name__ for cls in TYPES}
    assert {"Eigenpairs", "Spectrum", "Curve", "Mean", "SAMState", "Determinism"} <= names
    assert len(names) > 60


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_every_result_is_short(cls):
    for name, content in CONTENTS.items():
        text = repr(made(cls, content))
        assert len(text) < 2000, name
        assert text.startswith(f"{cls.__name__}("), name
        assert "array(" not in text.lower(), name
        assert name in ("text", "texts") or " [...] " not in text, f"{name} is cut"
    assert "layer_0" in made(cls, CONTENTS["by_layer"])._repr_html_()


def test_every_result_can_be_shown_while_it_is_traced():
    texts = []

    def show(x):
        for cls in TYPES:
            result = made(cls, x)
            texts.append((repr(result), result._repr_html_()))
        return x

    jax.eval_shape(show, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert len(texts) == len(TYPES)
    assert all("float32[3]" in text for pair in texts for text in pair)


def test_every_number_is_one():
    for cls in TYPES:
        if "value" in getattr(cls, "_fields", ()):
            result = made(cls, np.float32(1.25))
            assert float(result) == 1.25
            assert f"{result:.1f}" in ("1.2", "1.2 ± 1.2")


PAIRS = flatjax.Eigenpairs(
    values=np.array([9.25, -0.5, 1e-9]),
    vectors={"w": np.zeros((3, 300, 40)), "b": np.zeros((3, 40))},
    residual_norms=np.array([1.234e-6, 0.25, 1e-9]),
    converged=np.array([True, False, True]),
    resolved=np.array([True, True, False]),
    num_products=1234,
    noise_floor=np.float32(3.21e-6),
)


def test_a_table_of_pairs():
    wanted = """
Eigenpairs(
   values  residual_norms  converged  resolved
     9.25         1.2e-06       True      True
     -0.5            0.25      False      True
  < floor           1e-09       True     False
  vectors=<2 leaves, 36,120 numbers, float64>
  num_products=1,234
  noise_floor=3.2e-06
)"""
    assert repr(PAIRS) == wanted.strip()


def test_a_long_table_ends():
    pairs = PAIRS._replace(values=np.arange(20.0), residual_norms=np.ones(20))
    lines = [line.split() for line in repr(pairs).splitlines()]
    assert lines[9:11] == [["7", "1"], ["...", "..."]]
    assert "converged=[True, False, True]" in repr(pairs)  # of another length


def test_a_table_by_layer():
    numbers = {"a": np.float32(1), "b": np.float32(2.5)}
    result = made(flatjax.ScaleInvariantSharpness, numbers)._replace(
        total=np.float32(3.5), num_products=7
    )
    lines = [line.split() for line in repr(result).splitlines()[1:-1]]
    assert lines[0] == ["values", "errors", "curvatures", "squared_norms", "converged"]
    assert lines[2] == ["b", "2.5", "2.5", "2.5", "2.5", "2.5"]
    assert lines[3:] == [["total=3.5"], ["num_products=7"]]


ESTIMATE = flatjax.Estimate(
    value=np.float32(1234.5678),
    standard_error=np.float32(37.8),
    interval=np.array([1150.0, 1320.0]),
    num_products=40,
    converged=np.array(True),
)


def test_a_number_and_its_error_are_one_fact():
    short = ESTIMATE._replace(num_products=4)
    assert repr(short) == (
        "Estimate(value=1234.6 ± 38, interval=[1150, 1320], num_products=4, converged=True)"
    )
    alignment = made(flatjax.Alignment, np.float32(0.5))._replace(cosine_standard_error=0.0123)
    assert "\n  ratio=0.5 ± 0.5\n  cosine=0.5 ± 0.012\n  traces=" in repr(alignment)
    # Of a traced value nothing is known, and its error has a line of its own.
    traced = ESTIMATE._replace(value=jax.ShapeDtypeStruct((), "float32"))
    assert "value=float32[]" in repr(traced)
    assert "standard_error=38" in repr(traced)


def test_format_and_float():
    assert f"{ESTIMATE:.3g}" == "1.23e+03 ± 37.8"
    assert f"{ESTIMATE:.1f}" == "1234.6 ± 37.8"
    assert f"{ESTIMATE}" == "1234.6 ± 38"
    assert str(ESTIMATE) == repr(ESTIMATE)
    assert float(ESTIMATE) == float(ESTIMATE.value)
    several = ESTIMATE._replace(
        value=np.array([1.0, 2.0]), standard_error=np.array([0.1, 0.2]), interval=None
    )
    assert f"{several:.1f}" == "[1.0 ± 0.1, 2.0 ± 0.2]"
    assert f"{several}" == str(several)
    lines = [line.split() for line in repr(several).splitlines()]
    assert lines[1:4] == [["value", "standard_error"], ["1", "0.1"], ["2", "0.2"]]
    barrier = flatjax.Barrier(np.float32(0.5), 0.25, None, None)
    assert f"{barrier:.2f}, {barrier}" == "0.50, 0.5"  # without an error
    split = made(flatjax.SplitEstimate, np.float32(2))
    assert f"{split:.1f}" == "2.0 ± 2.0"
    traced = ESTIMATE._replace(value=jax.ShapeDtypeStruct((), "float32"))
    assert f"{traced:.3g}" == "float32[]"
    for combine in (lambda a: a + a, lambda a: 2 * a, lambda a: a * 2):
        with pytest.raises(TypeError, match=r"Estimate is no number: calculate with its \.value"):
            combine(ESTIMATE)
    with pytest.raises(ValueError, match="format"):
        f"{ESTIMATE:nonsense}"
    with pytest.raises(TypeError):
        float(several)


def test_results_inside_of_results():
    layer = flatjax.LayerSpectrum(10, ESTIMATE, made(flatjax.SpectralDensity, np.zeros(1000)))
    spectrum = flatjax.Spectrum(
        top=PAIRS, bottom=PAIRS, trace=ESTIMATE, frobenius_norm=ESTIMATE, density=layer.density,
        diagonal=NETWORK, layers={f"layer_{i}": layer for i in range(100)}, num_products=100,
        noise_floor=np.float32(1e-6), size=120_000,
        state=flatjax.SpectrumState(NETWORK, np.int32(3), np.float32(1e-6)), complete=True,
    )  # fmt: skip
    text = repr(spectrum)
    assert len(text) < 1700  # all of it is there, nothing cut out of the middle
    assert text.count("< floor") == 2
    assert "  trace=Estimate(value=1234.6 ± 38, interval=" in text
    assert "density=SpectralDensity(atoms=float64[1000], 0 to 0, weights=" in text  # one line
    assert "\n    vectors=<2 leaves" in text  # set in under `top`
    assert "layers={layer_0, layer_1, layer_2, layer_3, layer_4, layer_5, ... 94 more}" in text
    assert text.endswith("size=120,000\n  complete=True\n)")


def test_what_was_donated_is_a_shape():
    x = jnp.ones(3)
    x.delete()
    assert "values=float32[3]" in repr(PAIRS._replace(values=x))


class Table(html.parser.HTMLParser):
    """The rows of all tables, and the elements that were opened and closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.seen = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.rows[-1].append(data)


def test_tables_of_a_notebook():
    page = Table(PAIRS._repr_html_())
    assert not page.open
    assert page.rows[0] == ["values", "residual_norms", "converged", "resolved"]
    assert page.rows[3] == ["< floor", "1e-09", "True", "False"]  # escaped and back
    assert ["num_products", "1,234"] in page.rows
    assert "svg" not in page.seen


DENSITY = made(flatjax.SpectralDensity, None)._replace(
    atoms=np.array([3.0, 1.0, 0.0]), num_exact=1, grid=np.linspace(0, 4, 9), density=np.ones(9)
)


def test_a_density_is_drawn():
    page = Table(DENSITY._repr_html_())
    assert not page.open
    assert page.seen.count("line") == 1  # the exact eigenvalue
    assert page.seen.index("svg") < page.seen.index("table")
    whole = made(flatjax.Spectrum, None)._replace(top=PAIRS, trace=ESTIMATE, density=DENSITY)
    page = Table(whole._repr_html_())
    assert page.seen.count("svg") == 1
    assert ["trace", repr(ESTIMATE)] in page.rows
    assert ["values", "residual_norms", "converged", "resolved"] in page.rows


@pytest.mark.parametrize("field", ["grid", "density", "atoms", "num_exact"])
def test_a_density_that_is_not_at_hand_is_a_table(field):
    unknown = DENSITY._replace(**{field: jax.ShapeDtypeStruct((9,), "float32")})
    page = Table(unknown._repr_html_())
    assert "svg" not in page.seen
    assert [field, "float32[9]"] in page.rows


def test_a_result_stays_what_it_was():
    assert jax.tree.structure(ESTIMATE) == jax.tree.structure(ESTIMATE._replace(value=0.0))
    assert len(jax.tree.leaves(PAIRS)) == 8
    number = ESTIMATE._replace(interval=None)
    assert number == tuple(number)
    assert copy.copy(number) == pickle.loads(pickle.dumps(number)) == number
    assert number != number._replace(num_products=41)
    mean = flatjax.Mean(np.float32(1), np.float32(2))
    assert mean == pickle.loads(pickle.dumps(mean))


def test_a_name_that_looks_like_markup():
    @readable
    class Found(typing.NamedTuple):
        values: dict

    text = Found({"<b>": np.float32(1)})._repr_html_()
    assert Table(text).rows[1] == ["<b>", "1"]
    assert re.search("<td><b>", text) is None
