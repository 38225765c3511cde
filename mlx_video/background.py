"""Runs calls in a thread of their own, in order, such as encoders and writers of files. Knows nothing of what they do."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Callable

WAITING = 16  # calls


class Background(AbstractContextManager):
    """Runs calls while the caller goes on, unless more than ``WAITING`` wait.

    The end of the block waits for all calls; if it failed, it waits for the running one and drops the others. What a call
    raises, the next one raises in the caller's thread, or the end of the block.
    """

    def __init__(self):
        self._thread = ThreadPoolExecutor(1)
        self._calls: deque[Future] = deque()

    def __call__(self, function: Callable[..., object], *arguments: object) -> None:
        """Have ``function(*arguments)`` run after the earlier calls."""
        self._calls.append(self._thread.submit(function, *arguments))
        while len(self._calls) > WAITING or self._calls and self._calls[0].done():
            self._calls.popleft().result()

    def __exit__(self, failed: type[BaseException] | None, *_) -> None:
        try:
            while self._calls and not failed:
                self._calls.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
