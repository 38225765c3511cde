"""Calls in a thread of their own: their order, who waits for whom, and where their errors come out."""

import threading
import time

import pytest

from mlx_video import background
from mlx_video.background import Background


def test_calls_run_in_order_beside_the_caller_who_waits_for_them_at_the_end():
    order, caller, go = [], threading.get_ident(), threading.Event()

    def note(number: int) -> None:
        go.wait(10)
        order.append((number, threading.get_ident() != caller))

    with Background() as run:
        for number in range(5):
            run(note, number)
        assert not order
        go.set()
    assert order == [(number, True) for number in range(5)]


def test_few_calls_wait(monkeypatch):
    monkeypatch.setattr(background, "WAITING", 2)
    done = []
    with Background() as run:
        for number in range(5):
            run(lambda: time.sleep(0.01) or done.append(None))
            assert number + 1 - len(done) <= 2


def fail() -> None:
    raise ZeroDivisionError("a bug")


def test_a_bug_comes_out_at_the_next_call():
    go = threading.Event()
    with pytest.raises(ZeroDivisionError, match="a bug") as raised:
        with Background() as run:
            run(fail)
            run(go.set)
            go.wait(10)
            run(go.set)
            pytest.fail("the bug was lost")
    assert any(entry.name == "fail" for entry in raised.traceback)


def test_a_bug_comes_out_at_the_end():
    with pytest.raises(ZeroDivisionError, match="a bug"):
        with Background() as run:
            run(fail)


def test_a_block_that_fails_waits_only_for_the_call_that_runs():
    done, began = [], threading.Event()

    def slow() -> None:
        began.set()
        time.sleep(0.05)
        done.append("slow")

    with pytest.raises(KeyboardInterrupt):
        with Background() as run:
            run(slow)
            run(done.append, "later")
            began.wait(10)
            raise KeyboardInterrupt
    assert done == ["slow"]
