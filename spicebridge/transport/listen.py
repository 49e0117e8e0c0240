"""Listens on a TCP port or a Unix socket, for local ends and for our own SPICE endpoint."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import struct
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.lowlevel

from spicebridge.errors import EndpointError, printable
from spicebridge.transport.address import Address, TcpAddress, UnixAddress
from spicebridge.transport.entry import Entry, folder_locked
from spicebridge.transport.keepalive import keep_alive
from spicebridge.transport.lookup import look_up
from spicebridge.transport.stream import Stream

_BACKLOG: Final = 4096  # the kernel takes what net.core.somaxconn allows
_MAX_UNIX_PATH: Final = 107  # bytes of sun_path, its NUL apart (unix(7))
_OUT_OF_ROOM: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_OF_THE_CONNECTION: Final = {  # which had an error before we took it (accept(2))
    *(errno.EPERM, errno.EPROTO, errno.ENOPROTOOPT, errno.EOPNOTSUPP),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENONET),
}
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
        async with folder_locked(address.path):
            sock, made = _listen_unix(address.path, perm)
        return Listener(sock, address, made)
    sock = await _listen_tcp(address)
    return Listener(sock, TcpAddress(address.host, sock.getsockname()[1]))


class Listener:
    """A listening socket; as a context manager it closes it and removes the file it created.

    Args:
        sock: bound and listening.
        address: where that is.
        made: the file of a Unix socket that we have made.
    """

    def __init__(self, sock: socket.socket, address: Address, made: Entry | None = None) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.address = address
        self._made = made

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
        await anyio.lowlevel.checkpoint()  # others have their turn, however many connect
        while True:
            try:
                sock, peer = self._socket.accept()
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
            except ConnectionAbortedError:  # it has gone again
                continue
            except OSError as error:
                if error.errno in _OUT_OF_ROOM:
                    await anyio.sleep(0.1)  # there is some when other connections have ended
                elif error.errno not in _OF_THE_CONNECTION:
                    raise
            else:
                if isinstance(self.address, UnixAddress):
                    return Stream.of_socket(sock), _unix_peer(sock)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                keep_alive(sock)
                return Stream.of_socket(sock), str(TcpAddress(*peer[:2]))

    @property
    def is_local(self) -> bool:
        """Whether nobody can connect but from this machine."""
        if isinstance(self.address, UnixAddress):
            return True
        return ipaddress.ip_address(self._socket.getsockname()[0].partition("%")[0]).is_loopback

    def close(self) -> None:
        """Stops listening; removes the socket's file if it is still ours."""
        if self._made is not None:
            self._made.remove()  # as long as it listens: nobody takes it for one left behind
            self._made = None
        if self._socket.fileno() >= 0:
            anyio.notify_closing(self._socket)
            self._socket.close()


def origin_of(stream: Stream) -> str:
    """Who has opened an accepted connection, where it counts how much is theirs.

    That is an IPv4 address, the half of an IPv6 address that a network has (RFC 4291, 2.5.4: who
    has one address there has 2^64), or the user at a Unix socket; empty if they have gone.
    """
    if (sock := stream.socket) is None:
        return ""
    if sock.family == socket.AF_UNIX:
        return f"uid {_credentials(sock)[1]}"
    try:
        host = ipaddress.ip_address(sock.getpeername()[0].partition("%")[0])
    except OSError:
        return ""
    if isinstance(host, ipaddress.IPv4Address):
        return str(host)
    return str(host.ipv4_mapped or ipaddress.ip_network((host, 64), strict=False))


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


def _listen_unix(path: str, perm: int) -> tuple[socket.socket, Entry]:
    if len(os.fsencode(path)) > _MAX_UNIX_PATH:
        raise EndpointError(
            f"unix:{path}: the path has {len(os.fsencode(path))} bytes",
            f"a socket's path has {_MAX_UNIX_PATH} at most: choose a shorter one",
        )
    made = None
    try:
        _make_room(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:  # no more descriptors
        raise _cannot(UnixAddress(path), error, "") from error
    try:
        # Linux creates the file with the mode of the unbound socket, less the umask: it never
        # exists with a wider one than asked for.
        os.fchmod(sock.fileno(), perm)
        sock.bind(path)
        made = Entry.made(path, stat.S_IFSOCK, perm)
        sock.listen(_BACKLOG)
    except OSError as error:
        if made is not None:
            made.remove()
        sock.close()
        raise _cannot(UnixAddress(path), error, _UNIX_HINTS.get(error.errno or 0, "")) from error
    return sock, made


_UNIX_HINTS: Final = {
    errno.ENOENT: "create its folder first",
    errno.ENOTDIR: "create its folder first",
    errno.EADDRINUSE: "choose another path",
    errno.EEXIST: "choose another path",
    errno.EACCES: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}


def _cannot(address: Address, error: OSError | UnicodeError, hint: str) -> EndpointError:
    reason = (error.strerror or error) if isinstance(error, OSError) else "that is no host name"
    return EndpointError(f"cannot listen on {address}: {reason}", hint)


def _make_room(path: str) -> None:
    """Removes a socket that one of us has left behind at `path`.

    Raises:
        EndpointError: if something answers there, it is no socket, or somebody else's.
    """
    try:
        found = Entry(path)
    except OSError:  # nothing there; what else is wrong with it, bind will say
        return
    with found, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if not stat.S_ISSOCK(found.status.st_mode):
            raise _in_the_way(path, "it exists and is no socket")
        if not found.ours:
            raise _in_the_way(path, "it is a socket of another user")
        probe.setblocking(False)
        try:
            probe.connect(found.name)
        except ConnectionRefusedError:
            found.remove()
            return
        except OSError:  # alive, be it with a full backlog or not for us
            pass
    raise _in_the_way(path, "another program answers there")


def _in_the_way(path: str, what: str) -> EndpointError:
    return EndpointError(f"cannot listen on unix:{path}: {what}", "choose another path")


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end of a Unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, gid = _PEER_CREDENTIALS.unpack(credentials)
    return pid, uid, gid


def _unix_peer(sock: socket.socket) -> str:
    pid = _credentials(sock)[0]
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            name = file.read().strip()  # 15 bytes of its own choice (prctl(2), PR_SET_NAME)
            return f"pid {pid} ({printable(name)})"
    except OSError:  # it has gone already, or is in another namespace
        return f"pid {pid}"
