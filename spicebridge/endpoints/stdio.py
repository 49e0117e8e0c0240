"""``stdio``: our own standard input and output are the application.

Descriptors 0 and 1 are shared with the shell and whoever else was started with them, so O_NONBLOCK
is never set on them: a pipe or a terminal is opened anew through /proc, which gives a description
of our own; a socket cannot be, and has its flag given back at the end.
"""

from __future__ import annotations

import os
import stat
import sys
import termios
from collections.abc import Callable
from typing import Any

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.errors import EndpointError
from spicebridge.transport.stream import Stream

STDIO_LINGER = 0.5
"""Seconds of silence after the end of stdin before it ends."""

_STDIN = 0
_STDOUT = 1


class StdioEndpoint(Endpoint):
    """Standard input and output. A terminal's echo and line editing are off meanwhile.

    Args:
        linger: seconds of silence after the end of stdin before it ends.
    """

    name = "stdio"
    waits = False
    repeats = False

    def __init__(self, *, linger: float = STDIO_LINGER) -> None:
        self._linger = linger
        self._restore: list[Callable[[], None]] = []

    async def open(self) -> None:
        """Checks that both are there; Python has None for one that was closed at the start."""
        for name, stream in (("input", sys.__stdin__), ("output", sys.__stdout__)):
            if stream is None:
                raise EndpointError(f"stdio: standard {name} is closed", "redirect it")

    async def accept(self) -> Application:
        """Takes stdin and stdout."""
        opened: list[int] = []
        try:
            # both are looked at before one is opened: it could take the number of the other
            kinds = [os.fstat(fd).st_mode for fd in (_STDIN, _STDOUT)]
            opened.append(self._private(_STDIN, kinds[0], os.O_RDONLY))
            opened.append(self._private(_STDOUT, kinds[1], os.O_WRONLY))
            if os.isatty(_STDIN):
                self._quiet_terminal()
        except OSError as error:
            for fd in opened:
                os.close(fd)
            self.close()
            raise EndpointError(f"stdio: {error.strerror}", "is it closed?") from error
        reader, writer = opened
        stream = Stream.of_pair(reader, writer)
        return Application(stream, "stdio", linger=self._linger, ends_with_output=True)

    def close(self) -> None:
        """Gives the terminal and the flags of descriptors back."""
        while self._restore:
            self._restore.pop()()

    def _private(self, fd: int, kind: int, mode: int) -> int:
        """A non-blocking descriptor for what `fd` is, which the caller closes."""
        if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
            try:
                return os.open(
                    f"/proc/self/fd/{fd}", mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                )
            except OSError:  # not ours to open (su), or no /proc
                pass
        if not stat.S_ISREG(kind) and os.get_blocking(fd):
            os.set_blocking(fd, False)
            self._restore.append(lambda: os.set_blocking(fd, True))
        return os.dup(fd)

    def _quiet_terminal(self) -> None:
        """No echo, no line editing, keys as they are; Ctrl-C still ends us. As QEMU's stdio."""
        try:
            before, now = termios.tcgetattr(_STDIN), termios.tcgetattr(_STDIN)
        except termios.error:  # it has gone; reading it will tell
            return
        self._restore.append(lambda: _set_terminal(before))
        now[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        now[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
        now[6][termios.VMIN] = 1
        now[6][termios.VTIME] = 0
        _set_terminal(now)


def _set_terminal(attributes: list[Any]) -> None:
    try:
        termios.tcsetattr(_STDIN, termios.TCSADRAIN, attributes)
    except termios.error:  # it has gone
        pass
