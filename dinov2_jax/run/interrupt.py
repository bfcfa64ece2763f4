"""Signals that ask a run to end become a request to stop, which the loop obeys between two steps.

Schedulers send SIGTERM; SLURM's --signal, submitit and Lightning's scripts SIGUSR1 or SIGUSR2; a
terminal SIGINT, and SIGHUP when its connection is lost.
"""

import os
import signal
from collections.abc import Iterable
from types import FrameType
from typing import Any

from dinov2_jax.data.reader import STOP_SIGNALS


class StopRequest:
    """While entered, the first of these signals sets `number`; a second SIGINT interrupts.

    A signal is acknowledged at once on stderr. SIGHUP that is ignored stays so, as under nohup.

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
        if not self.number:
            # Not print, which may be in the middle of a line that this handler interrupts.
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: the run saves, then ends\n".encode())
        self.number = number
        if self._alone:
            self.agree([number])

    def asked(self) -> bool:
        """Whether the run shall stop; true at once if it is alone, else after an agreement."""
        return self.signal_name is not None

    def agree(self, numbers: Iterable[int]) -> None:
        """Takes the signal numbers of all processes; every process calls it at the same step."""
        number = int(max(numbers))
        if number:
            self.signal_name = signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        try:
            for number in STOP_SIGNALS:
                under_nohup = signal.getsignal(number) == signal.SIG_IGN
                if not (under_nohup and signal.Signals(number).name == "SIGHUP"):
                    self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            self._previous.clear()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler that a library installed without Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
