"""Joining others: where the first process listens."""

import jax
import pytest

from experiments.lib.runs import distributed


@pytest.mark.parametrize(
    ("coordinator", "listens"),
    [
        ("127.0.0.1:8476", "127.0.0.1:8476"),
        ("localhost:8476", "localhost:8476"),
        ("[::1]:8476", "[::1]:8476"),
        ("10.0.0.1:8476", None),  # JAX's default: all interfaces
        (None, None),
    ],
)
def test_processes_of_one_machine_are_not_heard_outside_it(monkeypatch, coordinator, listens):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **options: calls.append(options))
    distributed.join(distributed.Options(coordinator, 2, 0))
    assert calls[0]["coordinator_bind_address"] == listens
