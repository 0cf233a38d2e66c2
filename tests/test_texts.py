"""Values on one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax import _texts as texts


@pytest.mark.parametrize(
    ("value", "name", "wanted"),
    [
        (None, "", "None"),
        (True, "", "True"),
        (np.bool_(False), "", "False"),
        (12_345, "", "12,345"),
        (np.int32(-12_345), "", "-12,345"),
        (0.0, "", "0"),
        (1234.56789, "", "1234.6"),
        (123_456.789, "", "123457"),
        (12_345_678.9, "", "1.2346e+07"),
        (-0.000123456, "", "-0.00012346"),
        (1234.56789, "standard_error", "1235"),
        (0.123456, "residual_norm", "0.12"),
        (0.123456, "noise_floor", "0.12"),
        (0.123456, "drift", "0.12"),
        (0.123456, "tolerance", "0.12"),
        (float("nan"), "", "nan"),
        (jnp.float32(0.5), "", "0.5"),
        (jnp.bfloat16(0.5), "", "0.5"),
        ("words", "", "'words'"),
    ],
)
def test_numbers(value, name, wanted):
    assert texts.text(value, name) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.array([1.0, 2.5]), "[1, 2.5]"),
        (np.arange(6), "[0, 1, 2, 3, 4, 5]"),
        (np.array([], np.float32), "float32[0]"),
        (np.arange(7, dtype=np.int32), "int32[7], 0 to 6"),
        (np.array([np.nan, 1, 2, 3, 4, np.inf, 0]), "float64[7], 0 to 4, 2 not finite"),
        (np.full(7, np.nan), "float64[7], 7 not finite"),
        (np.arange(7) > 4, "bool[7], 2 of them True"),
        (np.zeros((2, 3), np.float32), "float32[2,3]"),
        (np.zeros(5000), "float64[5000]"),
        (np.zeros(2, complex), "complex128[2]"),
        (jax.ShapeDtypeStruct((2,), jnp.bfloat16), "bfloat16[2]"),
        (jax.random.key(0), "key<fry>[]"),
    ],
)
def test_arrays(value, wanted):
    assert texts.text(value) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"a": np.float32(1), "b": None}, "{a: 1, b: None}"),
        ({"a": np.zeros(2), "b": 1}, "<2 leaves, 3 numbers, float64, int>"),
        ((1, 2.5, "x"), "[1, 2.5, 'x']"),
        ((), "[]"),
        ({}, "<dict>"),
        (list(range(6)), "[0, 1, 2, 3, 4, 5]"),
        (list(range(7)), "[0, 1, 2, 3, 4, 5, ... 1 more]"),
        ([np.zeros((2, 3), np.float32)], "<1 leaf, 6 numbers, float32>"),
        (object(), "<object>"),
    ],
)
def test_containers(value, wanted):
    assert texts.text(value) == wanted


def test_long_lines_are_cut():
    assert texts.shortened("x" * 300) == "x" * 300
    cut = texts.text("a" + "x" * 10_000 + "z")
    assert len(cut) == 300
    assert cut.startswith("'ax")
    assert cut.endswith("xz'")
    assert len(texts.text(["x" * 200] * 5)) == 302


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.5e-4, "250 us"),
        (0.04, "40 ms"),
        (1.0, "1 s"),
        (9.9, "9.9 s"),
        (10.4, "10 s"),
        (99, "99 s"),
        (100, "1.7 min"),
        (3000, "50 min"),
        (6000, "1.7 h"),
        (1e5, "28 h"),
    ],
)
def test_durations(seconds, text):
    assert texts.duration(seconds) == text
