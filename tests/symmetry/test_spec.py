"""Specs: rules by path and pattern, sizes, and every mistake that can be seen without the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax

TREE = {
    "a": {"kernel": np.ones((3, 4)), "bias": np.ones(4)},
    "b": {"kernel": np.ones((4, 2)), "bias": np.ones(2)},
}
RULES = {
    "a/kernel": (None, "h"),
    "a/bias": ("h",),
    "b/kernel": ("h", None),
    "b/bias": None,
}


def spec(change=None, tree=TREE, **kw):
    return flatjax.spec_of(tree, {**RULES, **(change or {})}, **kw)


def test_axes_and_sizes():
    found = spec()
    assert found.axes == {
        "a/bias": ("h",),
        "a/kernel": (None, "h"),
        "b/bias": (None,),
        "b/kernel": ("h", None),
    }
    assert found.sizes == {"h": 4}


def test_paths_of_sequences_and_of_a_bare_leaf():
    tree = {"layers": [jnp.ones(2), (jnp.ones(3),)]}
    found = flatjax.spec_of(tree, {"layers/0": ("a",), "layers/1/0": ("b",)})
    assert found.sizes == {"a": 2, "b": 3}
    assert flatjax.spec_of(jnp.ones(2), {"": ("a",)}).sizes == {"a": 2}


def test_shapes_will_do():
    shapes = jax.eval_shape(lambda: TREE)
    assert spec(tree=shapes) == spec()


def test_regular_expressions_match_the_whole_path():
    found = flatjax.spec_of(
        TREE, {r"(\w)/kernel": (r"in_\1", r"out_\1"), r"a/bias": ("out_a",), "b/bias": ("out_b",)}
    )
    assert found.sizes == {"in_a": 3, "in_b": 4, "out_a": 4, "out_b": 2}
    for part in ("kernel", "a", "a/k"):
        with pytest.raises(ValueError, match=f"{part!r} matches no leaf"):
            flatjax.spec_of(TREE, {part: None, ".*": None})


def test_a_path_is_taken_as_it_is_too():
    tree = {"w(0": jnp.ones(2), "v[1]": jnp.ones(2)}  # no regular expression; one of other paths
    assert flatjax.spec_of(tree, {"w(0": ("a",), "v[1]": ("a",)}).sizes == {"a": 2}


def test_flattened_axes():
    tree = {"one": np.ones((12, 5)), "two": np.ones(4), "three": np.ones(6)}
    rules = {"one": ((None, "c"), None), "two": ("c",), "three": (("g", "g/u"),)}
    assert flatjax.spec_of(tree, rules, sizes={"g": 2}).sizes == {"c": 4, "g": 2, "g/u": 3}
    with pytest.raises(ValueError, match="sizes of 'g', 'g/u' cannot be known"):
        flatjax.spec_of(tree, rules)
    with pytest.raises(ValueError, match="axis 0 of leaf 'three' has size 6"):
        flatjax.spec_of(tree, rules, sizes={"g": 4})
    with pytest.raises(ValueError, match="'c' cannot be known"):
        flatjax.spec_of({"one": np.ones(12)}, {"one": ((None, "c"),)})


def test_inner_groups_need_their_blocks():
    tree = {"k": np.ones((2, 3)), "b": np.ones(3)}
    assert flatjax.spec_of(tree, {"k": ("h", "h/u"), "b": None}).sizes == {"h": 2, "h/u": 3}
    with pytest.raises(ValueError, match="leaf 'b' has the inner group 'h/u', and 0 axes"):
        flatjax.spec_of(tree, {"k": ("h", "h/u"), "b": ("h/u",)})
    with pytest.raises(ValueError, match="'h/u' needs a group 'h'"):
        flatjax.spec_of(tree, {"k": (None, "h/u"), "b": None})
    square = {"k": np.ones((2, 2, 3))}
    with pytest.raises(ValueError, match="2 axes of the blocks"):
        flatjax.spec_of(square, {"k": ("h", "h", "h/u")})
    twice = {"k": np.ones((6, 6))}  # each flattened axis has its own blocks
    both = flatjax.spec_of(twice, {"k": (("h", "h/u"), ("h", "h/u"))}, sizes={"h": 2})
    assert both.sizes == {"h": 2, "h/u": 3}
    with pytest.raises(ValueError, match="one slash"):
        flatjax.spec_of(square, {"k": ("h", "h/u", "h/u/v")})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"c/bias": None}, "'c/bias' matches no leaf"),
        ({"a/.*": None}, "leaf 'a/bias' has two rules, 'a/bias' and 'a/.\\*'"),
        ({"a/bias": ("h", None)}, r"leaf 'a/bias' has shape \(4,\).* has 2 entries"),
        ({"a/kernel": ("h",)}, r"leaf 'a/kernel' has shape \(3, 4\).* has 1 entry"),
        ({"a/kernel": ("h", None)}, "leaf 'a/kernel' has size 3, .* 'h': 'h' has 4"),
        ({"a/bias": "h"}, "must be a tuple or None"),
        ({"a/bias": (1,)}, "an axis is a group's name"),
        ({"a/bias": ((),)}, "it needs factors"),
        ({"a/bias": ((None, None),)}, "None is one at most"),
    ],
)
def test_mistakes(change, match):
    with pytest.raises(ValueError, match=match):
        spec(change)


def test_a_leaf_without_a_rule():
    rules = {k: v for k, v in RULES.items() if k != "a/bias"}
    with pytest.raises(ValueError, match=r"leaf 'a/bias' of shape .* has no rule: add one"):
        flatjax.spec_of(TREE, rules)


def test_sizes_of_no_group():
    with pytest.raises(ValueError, match="which no rule names"):
        spec(sizes={"other": 3})
    with pytest.raises(ValueError, match="at least 1"):
        spec(sizes={"h": 0})


def test_leaves_that_are_no_arrays():
    with pytest.raises(TypeError, match="leaf 'f' is of type builtin_function_or_method"):
        flatjax.spec_of({"f": len}, {"f": None})
