"""Ctrl-C, SIGTERM and SIGUSR1 during training: noted when they come, obeyed where a run can be saved.

An exception that a signal raises wherever the program happens to be may find weights half updated, or a file half
written. On several ranks, those that were told first would leave the others waiting.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from packmamba.training.lightning_compat import rank_of_process, restores_handlers

NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1"}
"""The signals that end training, in words."""


def exception_of(signum: int) -> BaseException:
    """What ends training for a signal: KeyboardInterrupt, or a SystemExit with the code that a shell gives it."""
    return KeyboardInterrupt() if signum == signal.SIGINT else SIGTERMException(128 + signum)


class StopSignals:
    """Handlers of the signals that end training. `received` is the first one since `defer`, or 0.

    A second Ctrl-C does not wait. Where Lightning requeues a Slurm job at SIGUSR1, that stays so.
    """

    def __init__(self) -> None:
        self.received = 0
        self._deferring = False
        self._pid = 0
        self._before: dict[int, Any] = {}
        self._spared = False
        self._of_children: Any = None

    def install(self) -> None:
        """Takes the signals; before `defer` they do what they did. Earlier than that, for processes that the training
        process forks have the handlers that it has then: loader workers leave Ctrl-C to it."""
        if threading.current_thread() is not threading.main_thread():
            return  # where Python allows no handlers
        self._pid = os.getpid()
        for signum in NAMES:
            before = signal.getsignal(signum)
            taken = signum == signal.SIGUSR1 and before is not signal.SIG_DFL
            if before != self._handle and before is not None and not taken:
                self._before[signum] = before
                signal.signal(signum, self._handle)

    def defer(self, trainer: Any) -> None:
        """From now on a signal is noted, and does nothing else."""
        before = dict(self._before)
        self.install()  # again: Lightning has set its own handler of SIGTERM
        self._before |= before
        restores_handlers(trainer, before)
        self.received = 0
        self._deferring = True

    def ignore(self) -> None:
        """While the last checkpoint is written: nothing can hurry it but SIGKILL."""
        if threading.current_thread() is threading.main_thread():
            for signum in self._before:
                signal.signal(signum, signal.SIG_IGN)
            self._leave_children()

    def _leave_children(self) -> None:
        """From now on a loader worker that ends is no exception, which torch raises wherever the program is: the signal
        may have gone to the workers too."""
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if before is not signal.SIG_DFL:
            self._of_children = before

    def restore(self) -> None:
        """Gives the signals back."""
        self._deferring = False
        if threading.current_thread() is threading.main_thread():
            for signum, before in self._before.items():
                signal.signal(signum, before)
            if self._of_children is not None:
                signal.signal(signal.SIGCHLD, self._of_children)
                self._of_children = None

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A process that the training process has forked. Signals to the whole process group are left to the
            # training process, which needs its loader workers to the end; it ends those that hang by SIGTERM, twice.
            if signum == signal.SIGTERM and self._spared:
                _act_as_by_default(signum)
            self._spared = signum == signal.SIGTERM or self._spared
        elif not self._deferring:
            before = self._before.get(signum, signal.SIG_DFL)
            if callable(before):
                before(signum, frame)
            elif before is not signal.SIG_IGN:
                _act_as_by_default(signum)
        elif not self.received:
            self.received = signum
            self._leave_children()
            if rank_of_process() == 0:
                again = "; once more to stop at once" if signum == signal.SIGINT else ""
                # print could find itself in the middle of a print
                os.write(2, f"\n{NAMES[signum]}: training stops after this batch{again}\n".encode())
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt


def _act_as_by_default(signum: int) -> None:
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)
