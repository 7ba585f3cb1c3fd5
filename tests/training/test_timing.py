import pytest

from priml.training.timing import Clock


class Watch:
    """Time passes when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Role:
    def __init__(self, watch):
        self.watch = watch
        self.helper = None

    def work(self, seconds, *, twice=False):
        self.watch.now += seconds * (2 if twice else 1)
        return "done"

    def nested(self):
        self.watch.now += 1
        self.helper.work(5)
        self.watch.now += 1

    def fail(self):
        self.watch.now += 3
        raise KeyError("x")

    def __call__(self, seconds):
        return self.work(seconds)


def test_named_methods_are_timed_and_the_rest_pass_through():
    watch = Watch()
    clock = Clock(watch)
    role = clock.wrap(Role(watch), "role", {"work": "phase"})
    assert role.work(2, twice=True) == "done"
    assert role.watch is watch
    with pytest.raises(KeyError):
        role.fail()
    assert clock.take()[0] == {"phase": 4.0}


def test_time_in_a_nested_span_counts_once():
    watch = Watch()
    clock = Clock(watch)
    inner, outer = Role(watch), Role(watch)
    outer.helper = clock.wrap(inner, "inner", {"work": "inner"})
    clock.wrap(outer, "outer", {"nested": "outer"}).nested()
    seconds, spans = clock.take()
    assert seconds == {"inner": 5.0, "outer": 2.0}
    assert [(s["phase"], s["start"], s["end"]) for s in spans] == [("inner", 1.0, 6.0), ("outer", 0.0, 7.0)]


def test_a_callable_is_timed_as_dunder_call():
    watch = Watch()
    clock = Clock(watch)
    assert clock.wrap(Role(watch), "verifier", {"__call__": "verify"})(4) == "done"
    assert clock.take()[0] == {"verify": 4.0}


def test_a_span_that_fails_is_still_recorded():
    watch = Watch()
    clock = Clock(watch)
    with pytest.raises(KeyError):
        clock.wrap(Role(watch), "role", {"fail": "phase"}).fail()
    assert clock.take()[0] == {"phase": 3.0}


def test_taking_empties_the_clock_and_spans_carry_the_step():
    watch = Watch()
    clock = Clock(watch)
    clock.step = 7
    with clock.span("role", "phase"):
        watch.now += 1
    assert clock.take()[1] == [{"step": 7, "role": "role", "phase": "phase", "start": 0.0, "end": 1.0}]
    assert clock.take() == ({}, [])


def test_work_beside_the_timed_calls_is_added_without_taking_from_them():
    watch = Watch()
    clock = Clock(watch)
    clock.step = 3
    with clock.span("sampler", "sample"):
        watch.now += 5
    clock.add("verifier", "overlapped", start=101.0, end=105.0, seconds=1.5)
    seconds, spans = clock.take()
    assert seconds == {"sample": 5.0, "overlapped": 1.5}
    assert spans[1] == {"step": 3, "role": "verifier", "phase": "overlapped", "start": 1.0, "end": 5.0}


def test_what_is_hidden_behind_another_phase_counts_once_also_while_that_one_goes_on():
    watch = Watch()
    clock = Clock(watch)
    start = watch.now

    def add(phase, first, last):
        clock.add("role", phase, start + first, start + last, last - first)

    add("sample", 0, 4)
    add("sample", 3, 5)
    add("waited", 5, 9)
    add("prm", 2, 7)
    add("prm", 10, 12)
    assert clock.hidden("prm", behind="sample") == 3.0
    watch.now = start + 11
    with clock.span("sampler", "sample"):
        assert clock.hidden("prm", behind="sample") == 4.0
    clock.take()
    assert clock.hidden("prm", behind="sample") == 0.0


def test_the_phase_that_goes_on_is_the_one_that_began_last():
    watch = Watch()
    clock = Clock(watch)
    assert clock.current() == ""
    with clock.span("sampler", "sample"):
        watch.now += 5
        assert clock.current() == "sample 5 s"
        with clock.span("verifier", "verify"):
            watch.now += 2
            assert clock.current() == "verify 2 s"
        assert clock.current() == "sample 7 s"
