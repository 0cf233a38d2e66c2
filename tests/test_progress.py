"""What is seen: lines where there is no terminal, a bar of rich where there is one."""

import builtins
import io
import sys

import jax
import pytest

from flatjax import _progress as progress


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self):
        return True


def terminal(monkeypatch) -> Terminal:
    # In the test itself: pytest puts its own in place after the fixtures.
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return stream


def test_lines_are_some_seconds_apart(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.display("eigsh")
    for now[0] in range(12):
        shown.update(now[0], None, f"{now[0]} products")
    shown.close("done")
    found = capsys.readouterr()
    assert found.err.splitlines() == ["eigsh: 5 products", "eigsh: 10 products", "eigsh: done"]
    assert found.out == ""


def test_what_ends_soon_without_a_word_prints_none(capsys):
    shown = progress.display("over_batches")
    shown.update(1, None, "1 batches")
    shown.close("")
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch):
    pytest.importorskip("rich")
    stream = terminal(monkeypatch)
    shown = progress.display("eigsh")
    assert isinstance(shown, progress.Bar)
    shown.update(3, 9.0, "3 products")
    (task,) = progress.Bar._shared.tasks
    assert (task.completed, task.total, task.fields["text"]) == (3, 12.0, "3 products")
    shown.update(4, None, "4 products")
    assert task.total == 12.0  # an unknown rest leaves it
    shown.close("12 products, 3.0 s")
    assert progress.Bar._shared is None
    assert "eigsh: 12 products, 3.0 s" in stream.getvalue()


def test_one_within_the_other_are_two_lines_of_a_display(monkeypatch):
    pytest.importorskip("rich")
    terminal(monkeypatch)
    outer, inner = progress.display("eigsh"), progress.display("over_batches")
    names = [task.description for task in progress.Bar._shared.tasks]
    assert names == ["eigsh", "over_batches"]
    inner.close("")
    assert [task.description for task in progress.Bar._shared.tasks] == ["eigsh"]
    outer.close("")
    assert progress.Bar._shared is None


def test_without_rich_a_terminal_gets_lines(monkeypatch):
    stream = terminal(monkeypatch)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "rich":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    shown = progress.display("eigsh")
    shown.close("done")
    assert stream.getvalue() == "eigsh: done\n"


def test_of_several_processes_the_first_speaks(capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    shown = progress.display("eigsh")
    shown.update(1, None, "1 products")
    shown.close("done")
    assert capsys.readouterr().err == ""
