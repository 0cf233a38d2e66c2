"""The checker: right specs hold, and of wrong ones the leaf is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from tests.symmetry import networks


def check(case, key, rules=None, sizes=None, params=None, model_fn=None):
    params = case.params if params is None else params
    sizes = case.sizes if sizes is None else sizes
    spec = flatjax.spec_of(params, {**case.rules, **(rules or {})}, sizes=sizes)
    return flatjax.check_symmetry(model_fn or case.model_fn, params, spec, case.inputs, key=key)


def replaced(case, old, new):
    """The case with some rules in place of one."""
    rules = {k: v for k, v in case.rules.items() if k != old}
    assert len(rules) < len(case.rules)
    return case._replace(rules={**rules, **new})


@pytest.mark.parametrize("name", networks.CASES)
def test_right_specs_hold(name, key):
    found = check(networks.CASES[name](), key)
    assert found.holds, found.message
    assert (found.groups, found.leaves) == ((), ())
    # Float32 and sums of up to 60 terms: rounding, and no more.
    assert found.error <= found.tolerance < 1e-3


def test_right_specs_hold_in_float64(x64, key):
    found = check(networks.mlp(dtype=np.float64), key)
    assert found.holds
    assert found.error <= found.tolerance < 1e-12


def test_low_precision_params_are_widened(key):
    case = networks.mlp()
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), case.params)
    found = check(case, key, params=params)
    assert found.holds
    assert found.tolerance < 1e-3  # that of float32


def test_low_precision_outputs_get_their_rounding(key):
    case = networks.mlp()
    low = lambda p, x: case.model_fn(  # noqa: E731
        jax.tree.map(lambda a: a.astype(jnp.bfloat16), p), x.astype(jnp.bfloat16)
    )
    found = check(case, key, model_fn=low)
    assert found.holds
    assert found.tolerance > 2.0**-8  # half of bfloat16's spacing
    broken = check(case, key, {"layer_0/bias": None}, model_fn=low)
    assert broken.leaves == ("layer_0/bias",)


def test_a_forgotten_bias(key):
    case = networks.mlp()
    # Biases of a fresh network are zero, and permuting them changes nothing.
    fresh = {k: {"kernel": v["kernel"], "bias": 0 * v["bias"]} for k, v in case.params.items()}
    found = check(case, key, {"layer_1/bias": None}, params=fresh)
    assert not found.holds
    assert found.groups == ("h1",)
    assert found.leaves == ("layer_1/bias",)
    assert "axis 0 of 'layer_1/bias' moves with it" in found.message
    assert found.error > 100 * found.tolerance


def test_a_forgotten_norm_of_a_fresh_network(key):
    """Its scales are all one."""
    case = replaced(
        networks.residual(),
        r"params/(Dense_[024]/bias|LayerNorm_\d/.*)",
        {
            r"params/(Dense_[024]/bias|LayerNorm_0/.*|LayerNorm_1/bias)": ("stream",),
            "params/LayerNorm_1/scale": None,
        },
    )
    params = {"params": {**case.params["params"]}}
    for i in range(2):
        ones = np.ones(6, np.float32)
        params["params"][f"LayerNorm_{i}"] = {"scale": ones, "bias": 0 * ones}
    found = check(case, key, params=params)
    assert (found.groups, found.leaves) == (("stream",), ("params/LayerNorm_1/scale",))


def test_a_single_unit_is_no_mistake(key):
    found = check(networks.mlp((1, 3)), key)
    assert found.holds, found.message


def test_a_misspelt_group(key):
    found = check(networks.mlp(), key, {"layer_0/bias": ("hO",)})
    assert not found.holds
    assert set(found.groups) == {"h0", "hO"}
    assert found.leaves == ("layer_0/bias",)
    assert "axis 0 of 'layer_0/bias' stays" in found.message


def test_a_forgotten_kernel(key):
    found = check(networks.mlp(), key, {"layer_1/kernel": (None, "h1")})
    assert (found.groups, found.leaves) == (("h0",), ("layer_1/kernel",))


def test_a_leaf_whose_size_merely_agrees(key):
    """Outputs as many as hidden units: the last bias is put into their group."""
    case = networks.mlp((3,))
    found = check(case, key, {"layer_1/bias": ("h0",)})
    assert (found.groups, found.leaves) == (("h0",), ("layer_1/bias",))
    assert "axis 0 of 'layer_1/bias' stays" in found.message


def test_outputs_that_are_permuted(key):
    """A group that is no symmetry: without all its leaves it permutes nothing, which mends all."""
    found = check(networks.mlp(), key, {"layer_2/kernel": ("h1", "out"), "layer_2/bias": ("out",)})
    assert (found.groups, found.leaves) == (("out",), ())
    assert "the group of 'layer_2/bias', 'layer_2/kernel'." in found.message


def test_two_groups_mixed_up(key):
    """Two hidden layers of the same width, the groups of which change places on one leaf."""
    found = check(networks.mlp((5, 5)), key, {"layer_1/kernel": ("h1", "h0")})
    assert found.groups == ("h0", "h1")
    assert found.leaves == ("layer_1/kernel",)


def test_groups_of_two_units_mixed_up(key):
    """All groups at once would hide it: there is one way only to move two units."""
    found = check(networks.mlp((2, 2)), key, {"layer_0/bias": ("h1",), "layer_1/bias": ("h0",)})
    assert found.groups == ("h0", "h1")
    assert set(found.leaves) == {"layer_0/bias", "layer_1/bias"}


def test_forgotten_batch_statistics(key):
    case = replaced(networks.conv_net(), r"batch_stats/BatchNorm_0/.*", {"batch_stats/.*": None})
    found = check(case, key)
    assert found.groups == ("c0",)
    assert set(found.leaves) == {
        "batch_stats/BatchNorm_0/mean",
        "batch_stats/BatchNorm_0/var",
    }


def test_a_forgotten_flattened_axis(key):
    found = check(networks.conv_net(), key, {"params/Dense_0/kernel": None})
    assert (found.groups, found.leaves) == (("c1",), ("params/Dense_0/kernel",))


def test_channels_first_where_they_are_last(key):
    case = networks.conv_net()
    found = check(case, key, {"params/Dense_0/kernel": (("c1", None), None)})
    assert (found.groups, found.leaves) == (("c1",), ("params/Dense_0/kernel",))


def test_a_norm_of_a_residual_stream(key):
    case = replaced(
        networks.residual(),
        r"params/(Dense_[024]/bias|LayerNorm_\d/.*)",
        {
            r"params/(Dense_[024]/bias|LayerNorm_\d/scale|LayerNorm_0/bias)": ("stream",),
            "params/LayerNorm_1/bias": None,
        },
    )
    found = check(case, key)
    assert (found.groups, found.leaves) == (("stream",), ("params/LayerNorm_1/bias",))


@pytest.mark.parametrize(
    ("path", "rule", "group"),
    [
        # Values of one head are taken for those of another, or queries without their keys.
        ("params/att/query/kernel", ("d", "heads", None), "heads/qk"),
        ("params/att/value/kernel", ("d", None, None), "heads"),
        ("params/att/out/kernel", ("heads", "heads/qk", "d"), "heads/v"),
        ("params/att/query/bias", ("heads", "heads/v"), "heads/qk"),
    ],
)
def test_heads(key, path, rule, group):
    case = networks.attention()
    found = check(case, key, {path: rule}) if rule[1] else None
    if found is None:  # without its blocks, an inner group has no place in the leaf
        found = check(case, key, {path: rule, "params/att/value/bias": None})
    assert group in found.groups
    assert path in found.leaves


def test_the_channels_of_a_group(key):
    case = networks.grouped()
    found = check(case, key, {"params/Conv_1/kernel": (None, None, None, ("g", "g/out"))})
    assert (found.groups, found.leaves) == (("g/in",), ("params/Conv_1/kernel",))


def test_a_kernel_of_flattened_blocks(key):
    found = check(networks.grouped(), key, {"params/Dense_0/kernel": None})
    assert set(found.groups) == {"g", "g/out"}
    assert found.leaves == ("params/Dense_0/kernel",)


def test_a_bias_of_blocks(key):
    found = check(networks.grouped(), key, {"params/Conv_0/bias": None})
    assert set(found.groups) == {"g", "g/in"}
    assert found.leaves == ("params/Conv_0/bias",)


def test_a_group_that_permutes_nothing(key):
    case = networks.mlp()
    params = {**case.params, "unused": np.ones(4, np.float32)}
    fn = lambda p, x: case.model_fn({k: v for k, v in p.items() if k != "unused"}, x)  # noqa: E731
    found = check(case, key, {"unused": ("idle",)}, params=params, model_fn=fn)
    assert not found.holds
    assert found.groups == ("idle",)
    assert "permutes nothing" in found.message
    assert "'unused'" in found.message


def test_what_no_few_axes_mend(key):
    """A group forgotten on more axes than are tried together."""
    case = networks.residual()
    rules = dict.fromkeys(case.rules)
    rules["params/Dense_0/kernel"] = (None, "stream")
    rules["params/Dense_2/kernel"] = (None, "stream")
    found = check(case, key, rules)
    assert (found.groups, found.leaves) == (("stream",), ())
    assert "mends it" in found.message


def test_outputs_that_say_nothing(key):
    case = networks.mlp()
    found = check(case, key, model_fn=lambda p, x: case.model_fn(p, x) / 0.0)
    assert not found.holds
    assert "not finite" in found.message
    with pytest.raises(ValueError, match="returns nothing"):
        check(case, key, model_fn=lambda p, x: {})


def test_several_outputs_and_further_arguments(key):
    case = networks.mlp()
    fn = lambda p, x, scale: {"small": 1e-6 * case.model_fn(p, x), "sum": scale * x.sum()}  # noqa: E731
    spec = flatjax.spec_of(case.params, {**case.rules, "layer_0/bias": None})
    found = flatjax.check_symmetry(fn, case.params, spec, case.inputs, 2.0, key=key)
    assert found.leaves == ("layer_0/bias",)
    assert found.error > 1e-3  # of the small output itself


def test_bad_input_stops_at_the_door(key):
    case = networks.mlp()
    with pytest.raises(TypeError, match="must be a function"):
        flatjax.check_symmetry(1, case.params, case.spec, case.inputs, key=key)
    with pytest.raises(ValueError, match="key is missing"):
        flatjax.check_symmetry(case.model_fn, case.params, case.spec, case.inputs, key=None)
    with pytest.raises(ValueError, match="'layer_0/bias'"):
        flatjax.check_symmetry(case.model_fn, {}, case.spec, case.inputs, key=key)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda p: check(case, key, params=p).error)(case.params)
