"""What steps return is read late, so that the device never waits for the host."""

from collections import deque
from collections.abc import Callable
from typing import Any

LAG_STEPS = 2


class Late:
    """Calls `read` with the arguments of each step `lag_steps` steps after that step.

    To read an array is to wait until the device has computed it. Whoever reads the step that was
    just given to the device leaves it without work while the host makes and copies the next batch.
    Two steps later the host waits for a step behind which two more are queued, so it is at most
    that far ahead.
    """

    def __init__(self, read: Callable[..., object], lag_steps: int = LAG_STEPS) -> None:
        self._read, self._lag = read, lag_steps
        self._pending: deque[tuple[Any, ...]] = deque()

    def add(self, *arguments: Any) -> None:
        """Takes what is to be read of a step, once a step, and reads an earlier one."""
        self._pending.append(arguments)
        self.flush(self._lag)

    def flush(self, lag_steps: int = 0) -> None:
        """Reads all but the newest `lag_steps` steps; after an error, the next call goes on."""
        while len(self._pending) > lag_steps:
            self._read(*self._pending.popleft())
