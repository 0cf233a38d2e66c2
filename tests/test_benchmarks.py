"""The runner of the benchmarks."""

import json
import sys

import pytest

from benchmarks import __main__ as runner
from benchmarks import costs


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return runner.main()


def test_the_list_names_every_benchmark(monkeypatch, capsys):
    assert run(monkeypatch, "--list") == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == runner.NAMES
    assert "costs" in listed


def test_an_unknown_name_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "nothing")
    assert "no benchmark nothing; there are" in capsys.readouterr().err


def test_results_are_written_with_their_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "main", lambda: {"gradient": {"flops": 1.0}})
    assert run(monkeypatch, "costs", "--output", str(tmp_path)) == 0
    record = json.loads((tmp_path / "costs.json").read_text())
    assert record["results"] == {"gradient": {"flops": 1.0}}
    assert {"jax", "flatjax", "devices"} <= set(record["environment"])
