"""What a person sees while a run runs."""

import io

import rich.console

from experiments.lib.runs.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_time_left_where_updates_are_minutes_apart(monkeypatch):
    """A run that continues at 1 of 5: what earlier starts did says nothing of its speed."""
    now = 0.0
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setattr(rich.console, "monotonic", lambda: now)
    progress = Progress("run", 5, 1)
    left = []
    for step, seconds in ((2, 100.0), (3, 100.0), (4, 400.0)):
        now += seconds
        progress.update(step)
        left.append(progress._bar.tasks[0].time_remaining)
    progress.close()
    assert left == [300, 200, 200]
