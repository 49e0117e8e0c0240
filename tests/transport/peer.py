"""The other end of a channel: a conversation whose socket the test moves by hand."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio

from spicebridge.channel import Channel
from spicebridge.protocol.constants import Msg
from spicebridge.protocol.conversation import Conversation
from spicebridge.protocol.events import Event, Pong
from spicebridge.protocol.link import Linked, LinkRequest
from tests.conftest import PATIENCE
from tests.protocol.wire import PORT, Item, append, deliver, message, say_data
from tests.transport.pairs import connected

SMALL: Final = 4096
"""Asked for as the size of the kernel's buffers, so that a few KiB fill them."""

PING: Final = message(Msg.PING, bytes(12))


def ping(number: int) -> bytes:
    """A PING with a mini header."""
    return message(Msg.PING, struct.pack("<IQ", number, 0))


@dataclass
class Peer:
    """The server at the other end of a channel.

    Attributes:
        sock: its socket; what would block for ever fails.
        heard: what the client has said, as far as the peer has read it.
    """

    sock: socket.socket
    conversation: Conversation
    heard: list[Item] = field(default_factory=list)

    def says(self, data: bytes) -> None:
        """Sends bytes as they are; the kernel has to have room for them."""
        self.sock.sendall(data)

    async def pours(self, stream: bytes) -> bool:
        """Sends bytes as the kernel takes them; returns False if the client wants no more."""
        while stream:
            try:
                stream = stream[os.write(self.sock.fileno(), stream[: 1 << 16]) :]
            except BlockingIOError:
                await anyio.wait_writable(self.sock)
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def says_data(self, data: bytes) -> None:
        """Sends a DATA."""
        self.says(say_data(self.conversation, data))

    def listens(self) -> bytes | None:
        """Reads what is there: None if there is nothing yet, empty at the end."""
        try:
            received = os.read(self.sock.fileno(), 1 << 16)
        except BlockingIOError:
            return None
        for item in deliver(self.conversation, received):
            append(self.heard, item)
        return received

    async def hears(self, count: int = 1 << 40) -> None:
        """Reads until so many bytes of data have come, or to the end of the stream."""
        while len(self.data) < count:
            received = self.listens()
            if received is None:
                await anyio.wait_readable(self.sock)
            elif not received:
                self.conversation.receive_eof()
                return

    async def hears_and_closes(self) -> None:
        """Reads to the end of the stream, and ends its own side then."""
        await self.hears()
        self.sock.close()

    def resets(self) -> None:
        """Breaks the connection (TCP)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    @property
    def data(self) -> bytes:
        """The data that was heard."""
        return b"".join(item for item in self.heard if isinstance(item, bytes))

    @property
    def pongs(self) -> list[int]:
        """The numbers of the pings that were answered."""
        return [item.id for item in self.heard if isinstance(item, Pong)]


@contextmanager
def linked(
    *,
    kind: str = "unix",
    buffer: int = 0,
    channel_type: int = PORT,
    mini: bool = True,
    caps: Collection[int] = (),
) -> Iterator[tuple[Channel, Peer]]:
    """A client's channel and the server at its other end."""
    with anyio.fail_after(PATIENCE), connected(kind, buffer=buffer) as (stream, sock):
        request = LinkRequest(1, channel_type, 3)
        agreed = Linked(request, mini_header=mini, channel_caps=frozenset(caps))
        conversation = Conversation(channel_type, mini_header=mini, server=True)
        yield Channel(stream, agreed), Peer(sock, conversation)


async def with_answers_waiting(channel: Channel, peer: Peer, count: int = 600) -> None:
    """Pings the client, which receives, more often than the kernel has room for its answers."""
    for number in range(count):
        peer.says(ping(number))
        await channel.receive()
    assert channel._conversation.control


def copied(items: Sequence[memoryview | Event] | None) -> list[Item]:
    """What `receive` gave, copied."""
    assert items is not None
    return [bytes(item) if isinstance(item, memoryview) else item for item in items]
