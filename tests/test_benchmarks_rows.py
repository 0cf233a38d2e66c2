"""Finished measurements are kept, unfinished ones are not."""

import pytest

from benchmarks import _rows


def test_a_finished_measurement_is_not_repeated(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"seconds": 0.5}

    for _ in range(2):
        assert _rows.Rows(tmp_path).get("mlp/eigsh, k=1", measure) == {"seconds": 0.5}
    assert len(calls) == 1


def test_a_measurement_that_fails_is_made_again(tmp_path):
    rows = _rows.Rows(tmp_path)

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows.get("a", stopped)
    assert rows.get("a", lambda: 1) == 1


def test_benchmarks_have_rooms_of_their_own(tmp_path):
    rows = _rows.Rows(tmp_path)
    assert rows.room("x").get("a", lambda: 1) == 1
    assert rows.room("y").get("a", lambda: 2) == 2
    assert rows.room("y").beside("x").get("a", lambda: 3) == 1
