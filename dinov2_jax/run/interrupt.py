"""SIGTERM and SIGINT become a request to stop, which the loop obeys between two steps."""

import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any


class StopRequest:
    """While entered, the first SIGTERM or SIGINT sets `number`; a second SIGINT interrupts.

    Outside the main thread, where handlers cannot be set, it does nothing. `alone`: this is the
    run's only process and may stop without agreement.
    """

    def __init__(self, alone: bool = True) -> None:
        self.number = 0  # of the signal that this process received; 0: none
        self._alone = alone
        # The signal that the loop obeys; with several processes, the one all agreed on.
        self.signal_name: str | None = None
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if self._alone:
            self.agree([number])

    def agree(self, numbers: Iterable[int]) -> None:
        """Takes the signal numbers of all processes; every process calls it at the same step."""
        number = int(max(numbers))
        if number:
            self.signal_name = signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            self._previous.clear()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler that a library installed without Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
