"""The cost model on paper: its page is up to date, and its limits are the known ones."""

import json

import pytest

from benchmarks import scaling
from tests.repository import ROOT

KEPT = json.loads(scaling.KEPT.read_text())
FLOPS = KEPT["results"]["products"]["hessian"]["flops_per_weight_and_token"]
TPU = scaling.MACHINES["TPU v5p"]


def test_the_tables_of_the_page_are_those_of_the_kept_measurement():
    page = scaling.PAGE.read_text()
    assert scaling.rendered(page, KEPT) == page
    products = KEPT["results"]["products"]
    for row in products.values():
        assert f"{row['flops_per_weight_and_token']:.1f}" in page
        assert f"{row['flops_per_second'] / 1e9:.0f}" in page


def test_the_measurement_names_versions_and_machine():
    assert {"jax", "devices", "processor"} <= set(KEPT["environment"])
    assert scaling.KEPT.is_relative_to(ROOT)


def test_flops_are_the_textbooks():
    """Eight matrix products a layer of two operations each, five for J' M J; attention is more."""
    assert 16 <= FLOPS <= 1.15 * 16
    ggn = KEPT["results"]["products"]["ggn"]["flops_per_weight_and_token"]
    assert 10 <= ggn <= 1.15 * 10


def test_one_device_sends_nothing_and_many_send_what_a_ring_does():
    assert scaling.product(TPU, 1e9, 1, flops=FLOPS).sent == 0
    cost = scaling.product(TPU, 1e9, 64, flops=FLOPS)
    assert cost.sent == pytest.approx(8e9 * 63 / 64)
    sharded = scaling.product(TPU, 1e9, 64, flops=FLOPS, sharded=True)
    assert sharded.sent == pytest.approx(20e9 * 63 / 64)


def test_between_islands_a_device_sends_its_islands_share():
    cost = scaling.product(scaling.MACHINES["H200"], 1e9, 64, flops=FLOPS)
    near, far = 8e9 * 7 / 8, 8e9 / 8 * 7 / 8
    assert cost.sent == pytest.approx(near + far)
    latency = 2 * (1 + 3) * 5e-6
    assert cost.communicate == pytest.approx(near / 450e9 + far / 50e9 + latency)


def test_the_number_of_params_cancels_at_the_break_even():
    tokens = scaling.break_even(TPU, 512, flops=FLOPS)
    for size in (1e9, 1e11):
        cost = scaling.product(TPU, size, 512, flops=FLOPS, tokens=512 * tokens)
        # 1 %: the latency, which does not grow with the params.
        assert cost.compute == pytest.approx(cost.communicate, rel=0.01)
