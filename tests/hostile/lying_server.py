"""A server that speaks well up to some step, and then lies.

It lives in a thread, so that it can talk to bridges in this process, on any loop, and to the
executable alike. A lie is put in place of one step; the steps after it follow all the same.
"""

from __future__ import annotations

import itertools
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from spicebridge.protocol.constants import ChannelType, CommonCap, Msg, MsgC
from spicebridge.protocol.events import ChannelsList, MainInit, Ping, PortInit
from spicebridge.protocol.messages import (
    encode_channels_list,
    encode_main_init,
    encode_ping,
    encode_port_init,
)
from tests.cli.fake_server import fake_server, message
from tests.cli.reaching import receive
from tests.conftest import PATIENCE
from tests.protocol.wire import PUBKEY

SERVED: Final = b"served, byte by byte"
"""What the channel gives to its application, wherever the client was content up to there."""

_TICKET = 4 + 128
_CAPS: Final = (
    1 << CommonCap.PROTOCOL_AUTH_SELECTION | 1 << CommonCap.AUTH_SPICE | 1 << CommonCap.MINI_HEADER
)
_PROBE: Final = Ping(0x5EED, 0x5EED)


class Step(Enum):
    """What a good server says: on the main channel, then on the one that is bridged."""

    REPLY = "link reply"
    RESULT = "link result"
    INIT = "MAIN_INIT"
    LIST = "CHANNELS_LIST"
    LATER = "nothing more on the main channel"
    CHANNEL_REPLY = "link reply of the channel"
    CHANNEL_RESULT = "link result of the channel"
    NAME = "PORT_INIT"
    BYTES = "DATA"


_MAIN: Final = (Step.REPLY, Step.RESULT, Step.INIT, Step.LIST, Step.LATER)
_CHANNEL: Final = (Step.CHANNEL_REPLY, Step.CHANNEL_RESULT, Step.NAME, Step.BYTES)

Tell = Callable[[socket.socket], None]
"""A lie that takes more than one write."""


def link_reply(
    *,
    error: int = 0,
    key: bytes = PUBKEY,
    counts: tuple[int, int] = (1, 0),
    offset: int = 178,
    caps: tuple[int, ...] = (_CAPS,),
    size: int | None = None,
) -> bytes:
    """A link reply, which may lie about any of its numbers."""
    body = struct.pack("<I162sIII", error, key, *counts, offset)
    body += struct.pack(f"<{len(caps)}I", *caps)
    return struct.pack("<4s3I", b"REDQ", 2, 2, len(body) if size is None else size) + body


def listed(*channels: tuple[int, int], count: int | None = None) -> bytes:
    """A CHANNELS_LIST, which may lie about how many there are."""
    payload = encode_channels_list(ChannelsList(channels))
    if count is not None:
        payload = struct.pack("<I", count) + payload[4:]
    return message(Msg.MAIN_CHANNELS_LIST, payload)


def main_init(session: int) -> bytes:
    """A MAIN_INIT."""
    return message(Msg.MAIN_INIT, encode_main_init(MainInit(session)))


def port_init(name: str | bytes, *, opened: bool = True) -> bytes:
    """A PORT_INIT; the bytes of a name need not be UTF-8."""
    if isinstance(name, str):
        return message(Msg.PORT_INIT, encode_port_init(PortInit(name, opened)))
    return message(Msg.PORT_INIT, struct.pack("<IIB", len(name) + 1, 9, opened) + name + b"\0")


def notify(text: bytes, *, severity: int = 1, length: int | None = None) -> bytes:
    """A NOTIFY, which may lie about the length of its text."""
    fixed = struct.pack("<QIIII", 0, severity, 0, 0, len(text) if length is None else length)
    return message(Msg.NOTIFY, fixed + text)


@dataclass
class Liar:
    """The server.

    Attributes:
        step: where it lies; nowhere if there is no `lie`.
        lie: what it says there instead.
        kind: type of the channel that it offers.
        names: of the ports that it offers, if they are many: by their ids.
        mini: whether headers have 6 bytes; otherwise 18.
        cut: bytes after which it hangs up, of all that it says; None for never.
        piece: bytes that it writes at once.
        keeps: whether the channel stays there after what it gives.
        digested: set once the client has answered to what was said after the lie, or has gone.
        content: whether it has answered.
    """

    step: Step = Step.LATER
    lie: bytes | Tell = b""
    kind: int = ChannelType.PORT
    names: tuple[str | bytes, ...] = ("org.lie.0",)
    cut: int | None = None
    piece: int | None = None
    keeps: bool = False
    digested: threading.Event = field(default_factory=threading.Event)
    content: bool = False

    def __call__(self, client: socket.socket) -> None:
        """Talks to one client."""
        channel_type, channel_id = _hear_link(client)
        main = channel_type == ChannelType.MAIN
        steps = _MAIN if main else _CHANNEL
        try:
            self._talk(client, steps, channel_id)
            if self.step not in steps:
                if not main and not self.keeps:
                    self.digested.wait()
            elif self.keeps or (self.lie and main):
                self._probe(client)
        except OSError:  # the client has had enough
            self.digested.set()
            raise
        if self.step in steps:
            self.digested.set()
        if not main and not self.keeps:
            client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass

    def _talk(self, client: socket.socket, steps: tuple[Step, ...], channel_id: int) -> None:
        for step in steps:
            if step in {Step.RESULT, Step.CHANNEL_RESULT}:
                receive(client, _TICKET)
            if step is Step.LIST:
                receive(client, 6)  # ATTACH_CHANNELS
            said = self.lie if step is self.step and self.lie else self._truth(step, channel_id)
            if isinstance(said, bytes):
                self._say(client, said)
            else:
                said(client)

    def _truth(self, step: Step, channel_id: int) -> bytes:
        channels = [(self.kind, number) for number in range(len(self.names))]
        truth: Mapping[Step, bytes] = {
            Step.REPLY: link_reply(),
            Step.RESULT: bytes(4),
            Step.INIT: main_init(7),
            Step.LIST: listed(*channels),
            Step.LATER: b"",
            Step.CHANNEL_REPLY: link_reply(),
            Step.CHANNEL_RESULT: bytes(4),
            Step.NAME: port_init(self.names[channel_id % len(self.names)]),
            Step.BYTES: message(Msg.DATA, SERVED),
        }
        return truth[step]

    def _say(self, client: socket.socket, said: bytes) -> None:
        if self.cut is not None:
            said, over = said[: self.cut], len(said) >= self.cut
            self.cut -= len(said)
        else:
            over = False
        piece = self.piece or max(1, len(said))
        for start in range(0, len(said), piece):
            client.sendall(said[start : start + piece])
        if over:
            client.shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError

    def _probe(self, client: socket.socket) -> None:
        """Asks for a sign of life: all that was said before has been understood then."""
        client.sendall(message(Msg.PING, encode_ping(_PROBE)))
        pong = message(MsgC.PONG, encode_ping(_PROBE))
        heard = b""
        while pong not in heard:
            more = client.recv(65536)
            if not more:
                raise ConnectionAbortedError
            heard = heard[-len(pong) :] + more
        self.content = True


def endless(*pieces: bytes, reads: bool, mebibytes: int | None = None) -> Tell:
    """Says something again and again, until it is much or the client has gone.

    A server that does not read is left waiting by the client, and then reads nothing even so.

    Args:
        pieces: what it says, in turn.
        reads: whether it reads what it is answered.
        mebibytes: that are much; None where it says it as long as the client is there.
    """
    whole = b"".join(pieces)
    chunk = memoryview(whole * max(1, 65536 // len(whole)))
    times = range((mebibytes << 20) // len(chunk)) if mebibytes else itertools.repeat(0)

    def tell(client: socket.socket) -> None:
        for _ in times:
            _pour(client, chunk, reads=reads)

    return tell


def _pour(client: socket.socket, data: memoryview, *, reads: bool) -> None:
    """Sends all of it, and drops what comes meanwhile if it is to be read."""
    poll = select.poll()
    poll.register(client, select.POLLOUT | (select.POLLIN if reads else 0))
    while data:
        ready = dict(poll.poll(1000 * PATIENCE)).get(client.fileno(), select.POLLHUP)
        if ready & select.POLLIN and not client.recv(1 << 20):
            raise ConnectionAbortedError
        if ready & ~select.POLLIN:
            data = data[client.send(data, socket.MSG_DONTWAIT) :]


def then_silence(said: bytes) -> Tell:
    """Says something, and nothing more while the client is there."""

    def tell(client: socket.socket) -> None:
        client.sendall(said)
        while client.recv(65536):
            pass
        raise ConnectionAbortedError

    return tell


@contextmanager
def lying_server(folder: Path, liar: Liar) -> Iterator[str]:
    """Serves it at a Unix socket; gives its URI."""
    with fake_server(folder / "liar", liar) as uri:
        try:
            yield uri
        finally:
            liar.digested.set()


def _hear_link(client: socket.socket) -> tuple[int, int]:
    """Reads a link message; gives the type and the id of the channel that is wanted."""
    header = receive(client, 16)
    body = receive(client, struct.unpack_from("<I", header, 12)[0])
    return body[4], body[5]
