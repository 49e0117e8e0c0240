"""A client that speaks well up to some step, and then lies, on blocking sockets.

It knows nothing of the server but its address, so that it can talk to an endpoint in this process,
from a thread, and to the executable alike. What it says is put together by hand, as most of it
would be refused by an encoder.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

from spicebridge.protocol.constants import LinkErr, Msg
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.link import LinkRequest, link_client
from spicebridge.protocol.login import ClientTicket
from spicebridge.transport.address import Address, TcpAddress, UnixAddress
from tests.conftest import PATIENCE

MAIN: Final = 1
PORT: Final = 10
USER: Final = 128

TICKET: Final = struct.pack("<I", 1) + bytes(128)
"""Mechanism and ticket where the server wants no password."""

_MESS: Final = struct.Struct("<4sIIIIBBIII")


def link_mess(
    session: int = 0,
    kind: int = MAIN,
    number: int = 0,
    *,
    magic: bytes = b"REDQ",
    major: int = 2,
    size: int | None = None,
    counts: tuple[int, int] = (1, 0),
    offset: int = 18,
    caps: bytes = struct.pack("<I", 0b1011),
) -> bytes:
    """A link message, good unless it is asked to lie."""
    size = 18 + len(caps) if size is None else size
    return _MESS.pack(magic, major, 2, size, session, kind, number, *counts, offset) + caps


def message(number: int, payload: bytes = b"", size: int | None = None) -> bytes:
    """A message with a mini header, which may lie about its size."""
    return struct.pack("<HI", number, len(payload) if size is None else size) + payload


def compressed(block: bytes, size: int, kind: int = 1) -> bytes:
    """A COMPRESSED_DATA, which may lie about what it unfolds to."""
    return message(Msg.COMPRESSED_DATA, struct.pack("<BI", kind, size) + block)


class Liar:
    """Connections of one client; as a context manager it leaves them, as a good client does.

    Args:
        address: of the server.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for sock in reversed(self._open):
            with sock:
                if error is None and sock.fileno() >= 0:
                    leave(sock)

    def connect(self, said: bytes = b"") -> socket.socket:
        """A connection; says something there."""
        if isinstance(self._address, UnixAddress):
            sock = socket.socket(socket.AF_UNIX)
        else:
            sock = socket.socket()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open.append(sock)
        sock.settimeout(PATIENCE)
        where = self._address
        sock.connect((where.host, where.port) if isinstance(where, TcpAddress) else where.path)
        send(sock, said)
        return sock

    def link(
        self, kind: int = MAIN, number: int = 0, session: int = 0, password: str = ""
    ) -> socket.socket:
        """A linked channel."""
        request = LinkRequest(session, kind, number)
        exchange = Exchange(link_client(request, [ClientTicket(password)]))
        sock = self.connect()
        while not exchange.done:
            send(sock, exchange.data_to_send())
            if exchange.needed:
                exchange.receive_data(receive(sock, exchange.needed))
        return sock

    def main(self, password: str = "") -> tuple[socket.socket, int]:
        """A main channel and the number of its session."""
        sock = self.link(password=password)
        init = next_message(sock, Msg.MAIN_INIT)
        return sock, int.from_bytes(init[:4], "little")

    def channel(self, kind: int = PORT, number: int = 0) -> socket.socket:
        """A linked channel in a session of its own, which the server has let us have."""
        _, session = self.main()
        sock = self.link(kind, number, session)
        next_message(sock, Msg.PING)
        return sock


def receive(sock: socket.socket, count: int) -> bytes:
    """So many bytes."""
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        assert piece, "the server has hung up"
        data += piece
    return data


def next_message(sock: socket.socket, wanted: int) -> bytes:
    """The payload of the next message of a type; those before it are passed over."""
    while True:
        number, size = struct.unpack("<HI", receive(sock, 6))
        payload = receive(sock, size)
        if number == wanted:
            return payload


def send(sock: socket.socket, data: bytes) -> None:
    """Says something, whether or not the server still listens."""
    try:
        sock.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        pass


def flood(sock: socket.socket, data: bytes, most: int) -> int:
    """Says the same again and again, until the server takes no more for a moment, or `most` bytes
    have gone; reads nothing. Returns the bytes that it took."""
    sock.settimeout(0.3)
    taken = 0
    view = memoryview(data)
    try:
        while taken < most:
            taken += sock.send(view[taken % len(view) :])
    except (TimeoutError, BrokenPipeError, ConnectionResetError):
        pass
    sock.settimeout(PATIENCE)
    return taken


def hung_up(sock: socket.socket) -> bytes:
    """What the server still says before it hangs up, as it has to."""
    said = bytearray()
    try:
        while piece := sock.recv(65536):
            said += piece
    except ConnectionResetError:  # it did not read what came behind the lie
        pass
    return bytes(said)


def leave(sock: socket.socket) -> None:
    """Ends a connection, and reads what still comes."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:  # the server has
        pass
    hung_up(sock)


def reset(sock: socket.socket) -> None:
    """Closes a connection the hard way."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def result(reply: bytes) -> LinkErr:
    """The error in a link reply."""
    return LinkErr(int.from_bytes(reply[16:20], "little"))


Lie = Callable[[Liar], Iterable[socket.socket]]
"""Tells one, and gives the connections on which the server has to hang up."""


def works(address: Address, password: str = "") -> None:
    """A good client from beginning to end, at a port behind which there is an echo."""
    with Liar(address) as client:
        _, session = client.main(password)
        sock = client.link(PORT, 0, session, password)
        send(sock, message(Msg.DATA, b"alive"))
        echoed = b""
        while len(echoed) < 5:
            echoed += next_message(sock, Msg.DATA)
        assert echoed == b"alive"
