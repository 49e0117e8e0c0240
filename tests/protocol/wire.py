"""An imaginary wire: carries the bytes of one role to the other, cut anywhere, without I/O."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import pytest

from spicebridge.errors import ProtocolError
from spicebridge.protocol.constants import ChannelType, LinkErr, Msg, MsgC
from spicebridge.protocol.conversation import Conversation
from spicebridge.protocol.dialogue import Dialogue, Exchange
from spicebridge.protocol.events import Event, MigrateBegin, MigrationTarget
from spicebridge.protocol.framing import Framing
from spicebridge.protocol.link import Linked, LinkRequest, link_server
from spicebridge.protocol.login import ServerLogin
from spicebridge.protocol.server_ticket import ServerTicket, new_ticket_key, ticket_pubkey

KEY: Final = new_ticket_key()
"""The private key of every server in the tests: making one costs more than using it."""
PUBKEY: Final = ticket_pubkey(KEY)

MAIN: Final = int(ChannelType.MAIN)
PORT: Final = int(ChannelType.PORT)
USBREDIR: Final = int(ChannelType.USBREDIR)
USER: Final = 128

Item = bytes | Event
"""What a conversation gives, data copied and joined as far as no event came between."""

C = TypeVar("C")
S = TypeVar("S")


def ok(_: LinkRequest) -> LinkErr:
    """Says yes to every link."""
    return LinkErr.OK


def serve(
    password: str | None = None,
    *,
    available: Callable[[LinkRequest], LinkErr] = ok,
    admit: Callable[[LinkRequest], LinkErr] = ok,
    logins: list[ServerLogin] | None = None,
    pubkey: bytes = PUBKEY,
) -> Dialogue[Linked]:
    """A server's side of a link that takes tickets and has every channel."""
    return link_server(pubkey, logins or [ServerTicket(KEY, password)], available, admit)


def pieces(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """`data` cut at the given places, those beyond its end left out."""
    places = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in itertools.pairwise(places):
        if start < end:
            yield data[start:end]


def play(client: Exchange[C], server: Exchange[S], piece: int = 1 << 20) -> None:
    """Carries bytes both ways, at most `piece` at once, until neither side has more to say."""
    moved = True
    while moved:
        moved = False
        for sender, receiver in ((client, server), (server, client)):
            said = sender.data_to_send()
            for each in pieces(said, range(piece, len(said), piece)):
                receiver.receive_data(each)
                moved = True


def deliver(conversation: Conversation, data: bytes, cuts: Iterable[int] = ()) -> list[Item]:
    """Lets a conversation receive `data` in pieces, as `Channel` does, and copies what it gives."""
    items: list[Item] = []
    for piece in pieces(data, cuts):
        rest = piece
        while rest:
            buffer = conversation.receive_buffer()
            count = min(len(buffer), len(rest))
            assert count, "the receive buffer is full, nothing could ever be received again"
            buffer[:count] = rest[:count]
            rest = rest[count:]
            given = conversation.receive_data(count)
            while conversation.more:
                given += conversation.receive_data(0)
            for item in given:
                append(items, bytes(item) if isinstance(item, memoryview) else item)
    return items


def append(items: list[Item], item: Item) -> None:
    """Adds an item; data behind data is joined."""
    if isinstance(item, bytes) and items and isinstance(last := items[-1], bytes):
        items[-1] = last + item
    else:
        items.append(item)


def messages(mini_header: bool, *each: tuple[int, bytes]) -> bytes:
    """A stream of (type, payload) messages."""
    framing = Framing(mini_header=mini_header)
    return b"".join(framing.pack(number, payload) for number, payload in each)


def message(number: int, payload: bytes = b"") -> bytes:
    """One message with a mini header, put together by hand."""
    return struct.pack("<HI", number, len(payload)) + payload


def encode_target(target: MigrationTarget, more: bytes = b"", none: int = 0xFFFF) -> bytes:
    """A SpiceMigrationDstInfo, as libspice-server writes it.

    Args:
        target: what it says.
        more: what stands between it and its strings.
        none: a port that is not there; QEMU's -1, or 0.
    """
    host = target.host.encode() + b"\0"
    subject = target.cert_subject.encode() + b"\0" if target.cert_subject else b""
    offset = 20 + len(more)
    fixed = struct.pack(
        "<HHIIII",
        none if target.port is None else target.port,
        none if target.tls_port is None else target.tls_port,
        len(host),
        offset,
        len(subject),
        offset + len(host) if subject else 0,
    )
    return fixed + more + host + subject


def encode_begin(begin: MigrateBegin) -> bytes:
    """The payload of MAIN_MIGRATE_BEGIN, or _BEGIN_SEAMLESS where it has a version."""
    more = b"" if begin.version is None else struct.pack("<I", begin.version)
    return encode_target(begin.target, more)


def client_side(channel_type: int = PORT, *, mini_header: bool = True) -> Conversation:
    """A client's conversation: it hears what servers send."""
    return Conversation(channel_type, mini_header=mini_header)


def server_side(channel_type: int = PORT, *, mini_header: bool = True) -> Conversation:
    """A server's conversation: it hears what clients send."""
    return Conversation(channel_type, mini_header=mini_header, server=True)


def say(conversation: Conversation, number: Msg | MsgC, payload: bytes = b"") -> bytes:
    """The bytes of one message of a conversation, and of the answers that waited before it."""
    conversation.send(number, payload)
    return take_control(conversation)


def say_data(conversation: Conversation, data: bytes) -> bytes:
    """The bytes of one DATA of a conversation, and of the answers that waited before it."""
    waiting = take_control(conversation)
    conversation.payload_buffer()[: len(data)] = data
    return waiting + bytes(conversation.data_message(len(data)))


def take_control(conversation: Conversation) -> bytes:
    """What a conversation wants sent by itself, taken from it."""
    data = bytes(conversation.control)
    conversation.control.clear()
    return data


def refused(conversation: Conversation, stream: bytes) -> ProtocolError:
    """The error that these bytes give."""
    with pytest.raises(ProtocolError) as caught:
        deliver(conversation, stream)
    return caught.value


def header(number: int, size: int, *, mini: bool = True) -> bytes:
    """A header alone: nothing of the message has to come before it is refused."""
    return struct.pack("<HI", number, size) if mini else struct.pack("<QHII", 1, number, size, 0)
