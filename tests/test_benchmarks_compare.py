"""Two folders of benchmark results, compared row by row."""

import json

import pytest

from benchmarks import _compare


def write(folder, seconds, products):
    """One call of flatjax's and three of a peer, which takes twice as long on its own account."""

    def rungs(factor):
        row = {"products": products, "errors": {"top": 0.5}}
        return [
            {"method": "eigsh", "options": {"tol": t}, "seconds": factor * seconds, **row}
            for t in (0.1, 0.2, 0.3)
        ]

    systems = {"flatjax": {"rungs": rungs(1.0)[:1]}, "peer": {"rungs": rungs(2.0)}}
    steps = {"sam": {"time_ratio": 2.0, "gradients": 2.0, "memory_ratio": 1.0}}
    results = {
        "side_by_side": {"mlp": {"systems": systems}},
        "accuracy": {"flat": {"eigsh": [{"products": 8, "error": 0.25}]}},
        "transforms": {"mlp": steps},
        "cold_start": {"mlp": {"flatjax": {"total": 3.0}, "peer": {"failure": "no"}}},
    }
    folder.mkdir()
    for name, found in results.items():
        (folder / f"{name}.json").write_text(json.dumps({"results": found}))


def test_a_ratio_is_after_over_before_and_what_grew_is_named(tmp_path):
    write(tmp_path / "before", 1.0, 10)
    write(tmp_path / "after", 1.5, 30)
    lines = list(_compare.report(tmp_path / "before", tmp_path / "after"))
    assert "| side_by_side | seconds | 1 | 1.500 | 1.50 to 1.50 | 1.50 to 1.50 |" in lines
    assert "| accuracy | error | 1 | 1.000 | 1.00 to 1.00 |  |" in lines
    # The peer took half as long again too, so that the seconds say nothing of flatjax.
    assert [line for line in lines if line.startswith("- ")] == [
        "- side_by_side, mlp, eigsh 0.1: products x 3.00 (30)"
    ]


def test_equal_folders_show_nothing(tmp_path):
    write(tmp_path / "one", 1.0, 10)
    assert list(_compare.report(tmp_path / "one", tmp_path / "one"))[-1] == "- none"


def test_a_row_that_only_one_has_is_left_out(tmp_path):
    write(tmp_path / "one", 1.0, 10)
    write(tmp_path / "two", 1.0, 10)
    path = tmp_path / "two" / "accuracy.json"
    path.write_text(json.dumps({"results": {"flat": {}}}))
    assert not _compare.ratios(tmp_path / "one", tmp_path / "two", "accuracy")
    with pytest.raises(FileNotFoundError):
        _compare.ratios(tmp_path / "one", tmp_path / "three", "accuracy")
