"""``fd=N``: the application is at a descriptor that our parent has opened for us."""

from __future__ import annotations

import fcntl
import os
import socket
import stat

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.endpoints.sockets import TCP_LINGER
from spicebridge.errors import EndpointError
from spicebridge.transport.stream import Stream


class InheritedEndpoint(Endpoint):
    """A descriptor for reading and writing: a socket, a terminal, a device. It is ours alone.

    Args:
        fd: its number.
    """

    waits = False
    repeats = False

    def __init__(self, fd: int) -> None:
        self.name = f"fd={fd}"
        self._fd = fd

    async def open(self) -> None:
        """Checks that it is open both ways."""
        try:
            mode = fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError as error:
            raise EndpointError(
                f"{self.name} is not open", f"open it in the shell, e.g. {self._fd}<>FILE"
            ) from error
        if mode != os.O_RDWR:
            way = "reading" if mode == os.O_RDONLY else "writing"
            raise EndpointError(f"{self.name} is open for {way} only", "open it both ways")

    async def accept(self) -> Application:
        """Takes the descriptor."""
        if stat.S_ISSOCK(os.fstat(self._fd).st_mode):
            sock = socket.socket(fileno=self._fd)
            linger = None if sock.family == socket.AF_UNIX else TCP_LINGER
            return Application(Stream.of_socket(sock), self.name, linger=linger)
        os.set_blocking(self._fd, False)
        stream = Stream(self._fd, self._fd, end=lambda: None, close=lambda: os.close(self._fd))
        return Application(stream, self.name)
