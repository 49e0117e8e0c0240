"""``pipe=P``: two FIFOs, as QEMU's ``-chardev pipe``: we read P.in and write P.out.

Both are opened for reading and writing, as QEMU does, so that no open blocks and no end of file is
seen when a writer goes: the application counts as there all the time. When the guest closes the
port, P.out is closed for a moment, and a reader sees end of file.
"""

from __future__ import annotations

import os
import stat

import anyio

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.errors import EndpointError
from spicebridge.transport.entry import Entry
from spicebridge.transport.stream import Stream


class PipeEndpoint(Endpoint):
    """The two FIFOs; they are created if neither is there, and removed at the end then.

    Args:
        path: P, of which P.in and P.out are made.
        perm: mode of created FIFOs.
    """

    waits = True
    repeats = True

    def __init__(self, path: str, *, perm: int = 0o600) -> None:
        self.name = f"pipe={path}"
        self._in = f"{path}.in"
        self._out = f"{path}.out"
        self._perm = perm
        self._created: list[Entry] = []
        self._released = anyio.Event()
        self._released.set()

    async def open(self) -> None:
        """Checks the FIFOs, or creates them."""
        found = [path for path in (self._in, self._out) if self._is_there(path)]
        if len(found) == 1:
            missing = self._out if found == [self._in] else self._in
            raise EndpointError(
                f"{self.name}: {missing} is missing", f"create it with: mkfifo {missing}"
            )
        try:
            for path in () if found else (self._in, self._out):
                os.mkfifo(path, self._perm)
                self._created.append(Entry.made(path, stat.S_IFIFO, self._perm))
        except OSError as error:
            self.close()
            raise EndpointError(
                f"{self.name}: cannot create {path}: {error.strerror}",
                "choose a folder that is there and that you may write to",
            ) from error

    def _is_there(self, path: str) -> bool:
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise EndpointError(f"{self.name}: {path}: {error.strerror}") from error
        self._check(path, status)
        return True

    def _check(self, path: str, status: os.stat_result) -> None:
        """Strangers are not to read what the guest says: /tmp is open to everybody.

        Raises:
            EndpointError: it is none of ours, or none at all.
        """
        problem = ""
        if stat.S_ISLNK(status.st_mode):
            problem = "is a symbolic link, which is not followed"
        elif not stat.S_ISFIFO(status.st_mode):
            problem = "exists and is no FIFO"
        elif status.st_uid not in {0, os.geteuid()}:
            problem = "is a FIFO of another user"
        if problem:
            raise EndpointError(f"{self.name}: {path} {problem}", "choose another path")

    async def accept(self) -> Application:
        """Opens both, once the last application has been let go."""
        await self._released.wait()
        reader = self._open(self._in)
        try:
            writer = self._open(self._out)
        except EndpointError:
            os.close(reader)
            raise
        self._released = anyio.Event()
        return Application(Stream.of_pair(reader, writer, self._released.set), self.name)

    def _open(self, path: str) -> int:
        try:
            fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY)
        except OSError as error:
            raise EndpointError(
                f"{self.name}: cannot open {path}: {error.strerror}",
                "check the FIFO and its permissions",
            ) from error
        try:
            self._check(path, os.fstat(fd))  # by now it may be another one
        except EndpointError:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Removes the FIFOs that `open` created."""
        while self._created:
            self._created.pop().remove()
