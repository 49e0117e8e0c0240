"""The signals that ask us to end: SIGINT, SIGTERM, and SIGHUP unless we run under nohup(1)."""

from __future__ import annotations

import atexit
import os
import signal
import socket
from types import FrameType, TracebackType
from typing import NoReturn, Self

import anyio


class StopSignals:
    """Receives them, in their order, while it is entered, in the main thread under asyncio.

    From then on none of them has its default action any more, which would kill the process with
    no exit code of its own: one that comes when nobody receives it ends the process at once, with
    128 and its number, and in the very last moments nothing can change the exit code.
    """

    def __init__(self) -> None:
        asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._numbers = [
            number
            for number in asked
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        ]

    def __enter__(self) -> Self:
        self._reader, writer = socket.socketpair()
        self._writer = writer
        self._reader.setblocking(False)
        writer.setblocking(False)
        # the interpreter writes the number there, which wakes the loop wherever it is
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in self._numbers:
            signal.signal(number, _noted)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Receives no more of them."""
        for number in self._numbers:
            signal.signal(number, _end_at_once)
        atexit.register(_ignore, self._numbers)  # the interpreter would set the default action
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    async def receive(self) -> signal.Signals:
        """The next one."""
        while True:
            await anyio.wait_readable(self._reader)
            number = self._reader.recv(1)[0]
            if number in self._numbers:
                return signal.Signals(number)


def _noted(number: int, frame: FrameType | None) -> None:
    """What was written for `receive` is enough."""


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


def _ignore(numbers: list[signal.Signals]) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
