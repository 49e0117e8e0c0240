"""``fd=``: a descriptor that our parent has opened for us: an application, or a socket where
applications connect."""

from __future__ import annotations

import fcntl
import os
import socket
import stat

from spicebridge.endpoints.base import Application, Endpoint
from spicebridge.endpoints.sockets import TCP_LINGER, ListenerEndpoint, linger_at
from spicebridge.errors import EndpointError
from spicebridge.transport.address import Address, TcpAddress, UnixAddress
from spicebridge.transport.listen import Listener
from spicebridge.transport.stream import Stream


class InheritedEndpoint(Endpoint):
    """A descriptor for reading and writing: a socket, a terminal, a device. It is ours alone.

    Args:
        fd: its number.
        name: as in the specification; by default with the number.
        linger: see `Application`.
    """

    waits = False
    repeats = False

    def __init__(self, fd: int, name: str = "", *, linger: float | None = None) -> None:
        self.name = name or f"fd={fd}"
        self._fd = fd
        self._linger = linger

    async def open(self) -> None:
        """Checks that it is open both ways; programs that we start do not get it."""
        try:
            mode = fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError as error:
            raise EndpointError(
                f"{self.name} is not open", f"open it in the shell, e.g. {self._fd}<>FILE"
            ) from error
        if mode != os.O_RDWR:
            way = "reading" if mode == os.O_RDONLY else "writing"
            raise EndpointError(f"{self.name} is open for {way} only", "open it both ways")
        if is_listening(self._fd):
            raise EndpointError(f"{self.name} is a socket that listens", "write mode=listen")
        os.set_inheritable(self._fd, False)

    async def accept(self) -> Application:
        """Takes the descriptor."""
        if stat.S_ISSOCK(os.fstat(self._fd).st_mode):
            sock = socket.socket(fileno=self._fd)
            linger = self._linger
            if linger is None and sock.family != socket.AF_UNIX:
                linger = TCP_LINGER
            return Application(Stream.of_socket(sock), self.name, linger=linger)
        os.set_blocking(self._fd, False)
        stream = Stream(self._fd, self._fd, end=lambda: None, close=lambda: os.close(self._fd))
        return Application(stream, self.name, linger=self._linger)


class InheritedListener(ListenerEndpoint):
    """A socket that listens already, as systemd gives one: applications connect to it.

    The descriptor stays open when this is closed, and the socket's file is never removed: both
    belong to who made them. Who connects after we have ended waits there for our next start.

    Args:
        fd: its number.
        name: as in the specification; by default with the number.
        linger: see `Application`; by default that of a listening socket of our own.
    """

    def __init__(self, fd: int, name: str = "", *, linger: float | None = None) -> None:
        super().__init__(name or f"fd={fd}", linger)
        self._fd = fd

    async def open(self) -> None:
        """Checks that it listens for streams; programs that we start do not get it."""
        sock = _socket(self._fd)
        address = _address(sock) if sock is not None else None
        if sock is None or address is None:
            if sock is not None:
                sock.close()
            raise EndpointError(
                f"{self.name} is no Unix or TCP socket that listens for streams",
                "let ListenStream= of systemd make one",
            )
        os.set_inheritable(self._fd, False)
        self._linger = linger_at(address, self._linger)
        self._listener = Listener(sock, address)
        self.name = f"{self.name} ({address})"


def is_listening(fd: int) -> bool:
    """Whether a descriptor, open or not, is a socket where one can connect (SO_ACCEPTCONN)."""
    if (sock := _socket(fd)) is None:
        return False
    with sock:
        return _listens(sock)


def _socket(fd: int) -> socket.socket | None:
    """The socket at a descriptor, at one of its own; None if it is none, or not open."""
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        return socket.socket(fileno=os.dup(fd)) if is_socket else None
    except OSError:
        return None


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _address(sock: socket.socket) -> Address | None:
    """Where it listens; None where that is nothing for us."""
    if sock.type != socket.SOCK_STREAM or not _listens(sock):
        return None
    if sock.family == socket.AF_UNIX:
        name = sock.getsockname()
        # an abstract one has a NUL where systemd writes an @ (systemd.socket(5))
        return UnixAddress(f"@{os.fsdecode(name[1:])}" if isinstance(name, bytes) else name)
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        return TcpAddress(*sock.getsockname()[:2])
    return None
