"""``exec=COMMAND``: a program of ours is the application, on its standard input and output."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
from typing import Final

import anyio
from anyio.abc import Process

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.endpoints.environment import environment
from spicebridge.errors import ApplicationError, EndpointError
from spicebridge.transport.stream import Stream

EXIT_TIMEOUT = 2.0
"""Seconds that a program has to exit after its end of file, and again after SIGTERM."""

_PIPE_SIZE: Final = 1024 * 1024  # bytes; /proc/sys/fs/pipe-max-size allows this to everybody


class ProcessApplication(Application):
    """A running program.

    Args:
        process: it.
        command: how it was started.
        stream: its output and input.
    """

    def __init__(self, process: Process, command: str, stream: Stream) -> None:
        super().__init__(stream, f"pid {process.pid} ({command})")
        self._process = process
        self._command = command

    async def aclose(self) -> None:
        """Gives it end of file, waits for it to exit, and makes it if it does not.

        Raises:
            ApplicationError: its status, if that is not 0 and not because we ended it.
        """
        self.stream.close()
        ended = False
        with anyio.CancelScope(shield=True):
            for force in (signal.SIGTERM, signal.SIGKILL):
                with anyio.move_on_after(EXIT_TIMEOUT):
                    await self._process.wait()
                if self._process.returncode is not None:
                    break
                ended = True
                _signal_group(self._process.pid, force)
            status = await self._process.wait()
            await self._process.aclose()
        if status == 0 or ended:
            return
        if status > 0:
            raise ApplicationError(f"exec={self._command}: it exited with status {status}")
        try:
            name = signal.Signals(-status).name
        except ValueError:  # a real-time signal
            name = f"signal {-status}"
        raise ApplicationError(f"exec={self._command}: it was killed by {name}")


class ProcessEndpoint(Endpoint):
    """Starts a program for each application.

    Args:
        command: words as a shell splits them; no shell runs it, unless it is ``sh -c '…'``.
    """

    waits = False
    repeats = True

    def __init__(self, command: str) -> None:
        self.name = f"exec={command}"
        self._command = command
        self._words: list[str] = []

    async def open(self) -> None:
        """Splits the command and looks for its program."""
        try:
            self._words = shlex.split(self._command)
        except ValueError as error:
            raise EndpointError(f"{self.name}: {error}", "close the quotation") from error
        if not self._words:
            raise EndpointError("exec= names no program", "write exec=COMMAND")
        if shutil.which(self._words[0]) is None:
            raise EndpointError(
                f"{self.name}: there is no program {self._words[0]!r}",
                "check its name, its permissions and $PATH",
            )

    async def accept(self) -> Application:
        """Starts it."""
        fds: list[int] = []
        try:
            fds += os.pipe()
            fds += os.pipe()
            child_in, writer, reader, child_out = fds
            for fd in (reader, writer):
                os.set_blocking(fd, False)
            for fd in (child_in, child_out):
                _widen(fd)
            process = await anyio.open_process(
                self._words,
                stdin=child_in,
                stdout=child_out,
                stderr=None,
                env=environment(),
                start_new_session=True,  # Ctrl-C is for us; the program gets end of file
            )
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, OSError):
                raise EndpointError(f"{self.name}: {error.strerror}") from error
            raise
        os.close(child_in)
        os.close(child_out)
        stream = Stream.of_pair(reader, writer)
        return ProcessApplication(process, self._command, stream)


def _widen(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    except OSError:  # over the user's limit on pipe pages: the default will do
        pass


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # it has gone meanwhile
        pass
