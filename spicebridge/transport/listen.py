"""Listens on a TCP port or a Unix socket, for local ends and for our own SPICE endpoint."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from types import TracebackType
from typing import Final, Self

import anyio

from spicebridge.errors import EndpointError
from spicebridge.transport.address import Address, TcpAddress, UnixAddress
from spicebridge.transport.lookup import look_up
from spicebridge.transport.stream import Stream

_BACKLOG: Final = 4096  # the kernel takes what net.core.somaxconn allows
_MAX_UNIX_PATH: Final = 107  # bytes of sun_path, its NUL apart (unix(7))
_PEER_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid (socket(7))


async def listen(address: Address, perm: int = 0o600) -> Listener:
    """Listens at an address.

    Args:
        address: where. Port 0 takes a free one; the listener's `address` tells which.
        perm: mode of a Unix socket.

    Raises:
        EndpointError: if it cannot listen there: something else does, or the path is in use.
    """
    if isinstance(address, UnixAddress):
        return Listener(_listen_unix(address.path, perm), address)
    sock = await _listen_tcp(address)
    return Listener(sock, TcpAddress(address.host, sock.getsockname()[1]))


class Listener:
    """A listening socket; as a context manager it closes it and removes the file it created.

    Args:
        sock: bound and listening.
        address: where that is.
    """

    def __init__(self, sock: socket.socket, address: Address) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.address = address
        self._inode = _inode_of(address.path) if isinstance(address, UnixAddress) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def accept(self) -> tuple[Stream, str]:
        """The next connection, and who it is: ``pid 4242 (socat)`` or ``127.0.0.1:40312``."""
        while True:
            try:
                sock, peer = self._socket.accept()
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except ConnectionAbortedError:  # it has gone again
                continue
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE}:
                    raise
                await anyio.sleep(0.1)  # descriptors come back when other connections end
            else:
                if isinstance(self.address, UnixAddress):
                    return Stream.of_socket(sock), _unix_peer(sock)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return Stream.of_socket(sock), str(TcpAddress(*peer[:2]))

    def close(self) -> None:
        """Stops listening; removes the socket's file if it is still ours."""
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()
        if isinstance(self.address, UnixAddress) and self._inode is not None:
            inode, self._inode = self._inode, None
            if _inode_of(self.address.path) == inode:
                os.unlink(self.address.path)


async def _listen_tcp(address: TcpAddress) -> socket.socket:
    try:
        found = await look_up(address, socket.AI_PASSIVE)
        family, kind, protocol, _, sockaddr = found[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _cannot(address, error, "check the host name") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(sockaddr)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(address, error, "choose another port") from error
    return sock


def _listen_unix(path: str, perm: int) -> socket.socket:
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise EndpointError(
            f"unix:{path}: the path has {len(os.fsencode(path))} bytes",
            f"a socket's path has {_MAX_UNIX_PATH} at most: choose a shorter one",
        )
    _make_room(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux creates the file with the mode of the unbound socket, less the umask: it never
        # exists with a wider one than asked for.
        os.fchmod(sock.fileno(), perm)
        sock.bind(path)
        os.chmod(path, perm)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise _cannot(UnixAddress(path), error, _UNIX_HINTS.get(error.errno or 0, "")) from error
    return sock


_UNIX_HINTS: Final = {
    errno.ENOENT: "create its folder first",
    errno.ENOTDIR: "create its folder first",
    errno.EACCES: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}


def _cannot(address: Address, error: OSError | UnicodeError, hint: str) -> EndpointError:
    reason = (error.strerror or error) if isinstance(error, OSError) else "that is no host name"
    return EndpointError(f"cannot listen on {address}: {reason}", hint)


def _inode_of(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _make_room(path: str) -> None:
    """Removes a stale socket at `path`.

    Raises:
        EndpointError: if something answers there, or it is no socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # nothing there; what else is wrong with it, bind will say
        return
    if not stat.S_ISSOCK(mode):
        raise EndpointError(
            f"cannot listen on unix:{path}: it exists and is no socket", "choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:  # alive, be it with a full backlog or not for us
            pass
    raise EndpointError(
        f"cannot listen on unix:{path}: another program answers there", "choose another path"
    )


def _unix_peer(sock: socket.socket) -> str:
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, _, _ = _PEER_CREDENTIALS.unpack(credentials)
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"pid {pid} ({file.read().strip()})"
    except OSError:  # it has gone already, or is in another namespace
        return f"pid {pid}"
