"""``pipe=P``: two FIFOs, as QEMU's ``-chardev pipe``: we read P.in and write P.out.

Both are opened for reading and writing, as QEMU does, so that no open blocks and no end of file is
seen when a writer goes: the application counts as there all the time. When the guest closes the
port, P.out is closed for a moment, and a reader sees end of file.
"""

from __future__ import annotations

import errno
import os
import stat

import anyio

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.errors import EndpointError
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
        self._created: list[str] = []
        self._released = anyio.Event()
        self._released.set()

    async def open(self) -> None:
        """Checks the FIFOs, or creates them."""
        found = [path for path in (self._in, self._out) if _is_fifo(path)]
        if len(found) == 1:
            missing = self._out if found == [self._in] else self._in
            raise EndpointError(
                f"{self.name}: {missing} is missing", f"create it with: mkfifo {missing}"
            )
        try:
            for path in () if found else (self._in, self._out):
                os.mkfifo(path, self._perm)
                self._created.append(path)
                os.chmod(path, self._perm)  # less no umask
        except OSError as error:
            self.close()
            raise EndpointError(
                f"{self.name}: cannot create {path}: {error.strerror}",
                "choose a folder that is there and that you may write to",
            ) from error

    async def accept(self) -> Application:
        """Opens both, once the last application has been let go."""
        await self._released.wait()
        reader = _open(self.name, self._in)
        try:
            writer = _open(self.name, self._out)
        except EndpointError:
            os.close(reader)
            raise
        self._released = anyio.Event()
        return Application(Stream.of_pair(reader, writer, self._released.set), self.name)

    def close(self) -> None:
        """Removes the FIFOs that `open` created."""
        while self._created:
            path = self._created.pop()
            try:
                os.unlink(path)
            except FileNotFoundError:  # somebody else tidied up
                pass


def _is_fifo(path: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return False
        raise EndpointError(f"pipe: {path}: {error.strerror}") from error
    if not stat.S_ISFIFO(mode):
        raise EndpointError(f"pipe: {path} exists and is no FIFO", "choose another path")
    return True


def _open(name: str, path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise EndpointError(
            f"{name}: cannot open {path}: {error.strerror}", "check the FIFO and its permissions"
        ) from error
