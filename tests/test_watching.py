"""The watch: which chunks it deals out, what it tells whom, and when it stops."""

import functools
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax import _watching as watching
from tests.watched import Calls, ctrl_c, interrupt


def start(**options):
    named = {"progress": False, "callback": None} | options
    return watching.watch("counting", **named)


def count(watch, total=20, **options):
    """Take steps under a watch; the step reached."""
    with watch:
        for _, done in watch.chunks(total):
            watch.report(done, np.float64(done), np.float64(1.0), **options)
    return done


class TestSilent:
    def test_all_options_off_are_one_chunk(self):
        watch = start()
        assert watch is watching.SILENT
        assert not watch.on
        with watch:
            assert list(watch.chunks(7)) == [(0, 7)]
            assert not watch.due(jnp.ones(2))
        assert watch.stopped is None

    def test_it_may_be_traced(self):
        def f(x):
            watch = start(traced=x)
            watch.check(x)
            return x

        jax.jit(f)(1.0)


class TestChunks:
    def test_fast_steps_come_in_chunks_of_twice_the_length(self, still):
        watch = start(callback=Calls())
        chunks = list(watch.chunks(12))
        assert chunks == [(0, 1), (1, 3), (3, 7), (7, 12)]
        assert list(watch.chunks(20)) == [(0, 16), (16, 20)]  # the length is kept

    def test_slow_steps_come_one_by_one(self, slow):
        assert list(start(callback=Calls()).chunks(3)) == [(0, 1), (1, 2), (2, 3)]

    def test_a_chunk_takes_half_a_second(self, still):
        watch, lengths = start(callback=Calls()), []
        for first, after in watch.chunks(200):
            lengths.append(after - first)
            still.now += 0.04 * (after - first)
        assert lengths[:4] == [1, 2, 4, 8]
        assert set(lengths[4:-1]) == {12}
        for first, after in watch.chunks(9):  # where steps get slower, chunks get shorter
            still.now += 0.2 * (after - first)
        assert next(watch.chunks(3)) == (0, 2)

    def test_a_program_of_its_own_is_one_chunk(self, slow):
        assert list(start(callback=Calls()).chunks(9, whole=True)) == [(0, 9)]

    def test_a_loop_without_chunks_is_due_as_rarely(self, still):
        with start(callback=Calls()) as watch:
            assert [i for i in range(1, 16) if watch.due(jnp.ones(()))] == [1, 3, 7, 15]


class TestReports:
    @pytest.fixture
    def timer(self, monkeypatch, still):
        monkeypatch.setattr(watching, "FREE", 0.005)
        monkeypatch.setattr(watching, "_timer", still)
        monkeypatch.setattr(watching, "_effort", still)
        return still

    def wanted(self, timer, each, cost, **options):
        """The steps of ``each`` seconds after which a report is made that takes ``cost``."""
        found = []
        with start(**({"callback": Calls()} | options)) as watch:
            for step in range(1, 101):
                timer.now += each
                if watch.wants():
                    found.append(step)
                    timer.now += cost
                    watch.report(step, 1.0, 1.0)
        return found

    def test_they_take_so_many_seconds_and_a_share_of_the_time(self, timer):
        found = self.wanted(timer, 0.01, 0.0011)
        assert found[:5] == [1, 2, 3, 4, 5]  # 5 ms
        assert 8 <= len(found) <= 10  # half a percent of a second
        assert min(np.diff(found[5:])) > 10
        assert self.wanted(timer, 0.5, 0.001) == list(range(1, 101))

    def test_the_callback_does_not_count(self, timer):
        def slow(*_):
            timer.now += 10.0

        found = self.wanted(timer, 1e-6, 0.0001, callback=slow)
        assert found == list(range(1, 101))

    def test_to_wait_for_the_device_is_no_effort(self, timer, monkeypatch):
        monkeypatch.setattr(watching, "_effort", lambda: 0.0)
        assert self.wanted(timer, 0.01, 3.0) == list(range(1, 101))

    def test_a_limit_is_seen_at_once(self, timer):
        assert self.wanted(timer, 0.01, 0.004, max_seconds=0.055) == [1, 2, 5]

    def test_and_so_is_an_interrupt(self, timer):
        with start(on_interrupt="return") as watch:
            watch._spent = 1.0
            assert not watch.wants()
            ctrl_c()
            assert watch.wants()

    def test_without_waiting_a_chunk_is_as_long_as_before(self, timer):
        watch, lengths = start(callback=Calls()), []
        watch._spent = 1.0
        for first, after in watch.chunks(4):
            lengths.append(after - first)
            watch.wants()
        assert lengths == [1, 1, 1, 1]

    def test_after_a_stop_none_is(self, slow):
        watch = start(callback=Calls(1))
        count(watch)
        assert not watch.wants()

    def test_several_processes_want_the_same(self, monkeypatch, timer):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        assert self.wanted(timer, 0.01, 0.01) == list(range(1, 101))


class TestStops:
    def test_nothing_stops_by_itself(self, still):
        calls = Calls()
        watch = start(callback=calls)
        assert count(watch) == 20
        assert watch.stopped is None
        assert calls.steps == [1, 3, 7, 15, 20]
        assert calls[1] == (3, 3.0, 1.0)

    def test_by_the_callback(self, slow):
        watch = start(callback=Calls(5))
        assert count(watch) == 5
        assert watch.stopped == "callback"
        assert list(watch.chunks(3)) == []

    @pytest.mark.parametrize("answer", [np.True_, jnp.array(True)])
    def test_any_boolean_will_do(self, slow, answer):
        assert count(start(callback=lambda *_: answer)) == 1

    def test_what_is_no_boolean_does_not_stop(self, slow):
        assert count(start(callback=lambda *_: None)) == 20
        assert count(start(callback=lambda *_: np.zeros(3))) == 20
        assert count(start(callback=lambda *_: 0.3)) == 20  # the loss, say
        assert count(start(callback=lambda *_: np.float32(1))) == 20

    def test_by_the_time(self, still):
        def later(*_):
            still.now += 1.0

        watch = start(callback=later, max_seconds=4.5)
        with watch:
            for _, done in watch.chunks(20, whole=False):
                watch.report(done, 1.0, 1.0)
        assert watch.stopped == "max_seconds"
        assert still.now == 5.0

    def test_before_there_is_a_result_nothing_stops(self, slow):
        calls = Calls(2)
        watch = start(callback=calls)
        with watch:
            for _, done in watch.chunks(20):
                watch.report(done, 1.0, 1.0, ready=done >= 6)
        assert done == 6
        assert watch.stopped == "callback"

    def test_what_was_said_once_counts(self, slow):
        watch = start(callback=lambda step, *_: step == 2)
        with watch:
            for _, done in watch.chunks(20):
                watch.report(done, 1.0, 1.0, ready=done >= 6)
        assert (done, watch.stopped) == (6, "callback")

    def test_what_has_ended_is_not_stopped(self, slow):
        watch = start(max_seconds=0.5)
        watch.__enter__()
        watch.report(20, left=0)
        assert watch.stopped is None
        watch.report(19, left=1)
        assert watch.stopped == "max_seconds"

    def test_a_report_without_values_calls_nobody(self, slow):
        calls = Calls()
        with start(callback=calls) as watch:
            watch.report(1)
        assert not calls

    def test_a_callback_of_other_arguments(self, slow):
        with start(callback=lambda *_: None) as watch:
            watch.ask(lambda *args: args == (1, 2), 1, 3)
            assert watch.stopped is None
            watch.ask(lambda *args: args == (1, 2), 1, 2)
        assert watch.stopped == "callback"


class TestInterrupts:
    @pytest.mark.parametrize("how", [ctrl_c, interrupt])
    def test_it_stops_at_the_next_report(self, slow, how):
        before = signal.getsignal(signal.SIGINT)
        watch = start(callback=Calls(4, how), on_interrupt="return")
        assert count(watch) == 4
        assert watch.stopped == "interrupt"
        assert signal.getsignal(signal.SIGINT) is before

    @pytest.mark.parametrize("how", [ctrl_c, interrupt])
    def test_by_default_it_raises(self, slow, how):
        with pytest.raises(KeyboardInterrupt):
            count(start(callback=Calls(4, how)))

    def test_the_second_one_raises(self, slow):
        before = signal.getsignal(signal.SIGINT)
        watch = start(on_interrupt="return")
        with watch:
            ctrl_c()
            with pytest.raises(KeyboardInterrupt):
                ctrl_c()
        assert signal.getsignal(signal.SIGINT) is before

    def test_before_there_is_a_result_it_raises(self, slow):
        watch = start(callback=Calls(2, ctrl_c), on_interrupt="return")
        with pytest.raises(KeyboardInterrupt, match="counting was interrupted with 2 products"):
            count(watch, ready=False)

    def test_in_a_thread_there_is_no_signal_to_take(self, slow):
        found = []
        thread = threading.Thread(target=lambda: found.append(count(start(on_interrupt="return"))))
        thread.start()
        thread.join()
        assert found == [20]


class TestSeveralProcesses:
    def test_they_take_the_same_chunks(self, monkeypatch, slow):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        assert list(start(callback=Calls()).chunks(20)) == [(0, 8), (8, 16), (16, 20)]

    @pytest.mark.parametrize("options", [{"max_seconds": 1.0}, {"on_interrupt": "return"}])
    def test_they_cannot_agree_on_a_stop(self, monkeypatch, options):
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="for one process"):
            start(**options)


class TestDoor:
    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"progress": 1}, TypeError, "progress must be True or False"),
            ({"callback": 3}, TypeError, "callback must be a function"),
            ({"max_seconds": "1"}, TypeError, "max_seconds must be a number"),
            ({"max_seconds": 0.0}, ValueError, "max_seconds must be above"),
            ({"on_interrupt": "stop"}, ValueError, "on_interrupt must be one of 'raise', 'return'"),
        ],
    )
    def test_options_of_another_kind(self, options, error, text):
        with pytest.raises(error, match=text):
            start(**options)

    @pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
    @pytest.mark.parametrize("late", [False, True])
    def test_what_is_traced_cannot_be_watched(self, transform, late):
        def f(x):
            watch = start(max_seconds=1.0, traced=() if late else x)
            watch.check(x)
            return x

        with pytest.raises(TypeError, match="counting cannot be watched while it is traced"):
            transform(f)(jnp.ones(2) if transform is jax.vmap else 1.0)


class TestReason:
    def test_it_is_a_text_and_no_leaf(self):
        reason = watching.Reason("callback")
        assert reason == "callback"
        assert jax.tree.leaves((reason, 1)) == [1]
        assert jax.jit(lambda pair: pair)((reason, 1))[0] == "callback"

    def test_a_result_that_has_ended_is_left_alone(self):
        assert watching.marked(1, watching.SILENT) == 1


class TestEstimatedTime:
    def shown(self, watch, *reports):
        texts = []
        with watch:
            watch._display = type("Texts", (), {"update": lambda _, *a: texts.append(a)})()
            for report in reports:
                report()
            watch._display = None
        return texts

    def test_of_a_known_number_of_steps(self, still):
        watch = start(callback=Calls())

        def at(step, now):
            still.now = now
            watch.report(step, np.array([2.0, 4.0]), np.array([1.0, 1.0]), left=10 - step)

        texts = self.shown(watch, lambda: at(1, 5.0), lambda: at(4, 8.0))
        assert texts[0] == (1, 9, "1 of 10 products, worst residual 5.0e-01")
        assert texts[1] == (4, 6, "4 of 10 products, worst residual 5.0e-01, about 6 s left")

    def test_of_a_residual_that_falls(self, still):
        watch = start(callback=Calls())

        def at(step, distance):
            still.now = 3.0 * step
            watch.report(step, distance=distance, text="on its way")

        reports = (functools.partial(at, *a) for a in ((1, 8.0), (3, 6.0), (5, np.inf)))
        texts = self.shown(watch, *reports)
        assert texts[0] == (1, None, "1 products, on its way")
        assert texts[1] == (3, 6.0, "3 products, on its way, about 18 s left")
        assert texts[2] == (5, None, "5 products, on its way")
