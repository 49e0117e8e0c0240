"""Linked channels of every kind, with both headers, heard by clients and by servers.

Which messages there are is read from the protocol's own tables, so that a new one is fuzzed too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import lz4.block

from spicebridge.errors import ProtocolError
from spicebridge.protocol.constants import MAX_PORT_NAME, MigrateFlags, Msg, MsgC
from spicebridge.protocol.conversation import Conversation
from spicebridge.protocol.events import (
    AckSync,
    ChannelsList,
    Event,
    MainInit,
    Pong,
    PortEvent,
    PortInit,
)
from spicebridge.protocol.framing import Framing
from spicebridge.protocol.messages import (
    Table,
    encode_ack_sync,
    encode_channels_list,
    encode_main_init,
    encode_ping,
    encode_port_event,
    encode_port_init,
    messages_from_client,
    messages_from_server,
)
from tests.fuzz.script import Parser, Script, cut, told

TYPES: Final = (1, 10, 9, 11, 128, 255, 8)
_MAIN: Final = 1

_MOST: Final = 600_000
"""Bytes that one input may have us add to what is in it: two buffers full, and soon done."""

TABLE: Final = 4
"""The form of a message out of the table; those below are DATA, compressed or not, long or not."""

_SENT_BY_SERVER: Final[dict[type[Event], tuple[int, Callable[[Any], bytes]]]] = {
    MainInit: (Msg.MAIN_INIT, encode_main_init),
    ChannelsList: (Msg.MAIN_CHANNELS_LIST, encode_channels_list),
    PortInit: (Msg.PORT_INIT, encode_port_init),
    PortEvent: (Msg.PORT_EVENT, encode_port_event),
}
_SENT_BY_CLIENT: Final[dict[type[Event], tuple[int, Callable[[Any], bytes]]]] = {
    AckSync: (MsgC.ACK_SYNC, encode_ack_sync),
    Pong: (MsgC.PONG, encode_ping),
    PortEvent: (MsgC.PORT_EVENT, encode_port_event),
}


@dataclass(frozen=True)
class Side:
    """Who hears.

    Attributes:
        channel_type: of the channel.
        server: whether it is the server.
        mini_header: what was agreed on.
    """

    channel_type: int
    server: bool
    mini_header: bool

    @property
    def table(self) -> Table:
        """What the peer may say, DATA apart."""
        return (messages_from_client if self.server else messages_from_server)(self.channel_type)


def side(script: Script) -> Side:
    """A side of the script's choice: two bytes."""
    return Side(script.choice(TYPES), *script.flags(2))


@dataclass
class Heard:
    """What a side has heard.

    Attributes:
        items: events and data, of which those that follow each other are joined.
        answers: what it wants to say to that by itself.
        refused: the error in words; what the last piece held before it is not among the items.
    """

    items: list[bytes | Event] = field(default_factory=list)
    answers: bytes = b""
    refused: str = ""

    @property
    def data(self) -> bytes:
        """The data alone."""
        return b"".join(item for item in self.items if isinstance(item, bytes))


def hear(listener: Side, pieces: Iterable[bytes], keep: int = -1) -> Heard:
    """Lets a side hear what comes in pieces, and then the end.

    Args:
        listener: who hears.
        pieces: what comes.
        keep: number of the piece whose views are to live until the end.
    """
    conversation = Conversation(
        listener.channel_type, mini_header=listener.mini_header, server=listener.server
    )
    heard = Heard()
    kept: list[tuple[memoryview, bytes]] = []
    try:
        for number, piece in enumerate(pieces):
            rest = memoryview(piece)
            while rest:
                buffer = conversation.receive_buffer()
                count = min(len(buffer), len(rest))
                assert count, "the buffer is full, nothing could ever be received again"
                buffer[:count] = rest[:count]
                rest = rest[count:]
                given = conversation.receive_data(count)
                _note(heard.items, given)  # all of it is valid until the next
                while conversation.more:
                    given = conversation.receive_data(0)
                    _note(heard.items, given)
                if number == keep:
                    kept += [(view, bytes(view)) for view in given if isinstance(view, memoryview)]
                    conversation.spare_views()
        conversation.receive_eof()
    except ProtocolError as error:
        heard.refused = told(error)
    assert all(view == data for view, data in kept)
    heard.answers = bytes(conversation.control)
    return heard


def _note(items: list[bytes | Event], given: Iterable[memoryview | Event]) -> None:
    for item in given:
        _append(items, bytes(item) if isinstance(item, memoryview) else item)


def _append(items: list[bytes | Event], item: bytes | Event) -> None:
    if isinstance(item, bytes) and items and isinstance(last := items[-1], bytes):
        items[-1] = last + item
    else:
        items.append(item)


def _check(listener: Side, stream: bytes, cuts: int) -> Heard:
    """Hears a stream at once and in pieces, and says again what can be said."""
    whole = hear(listener, [stream])
    in_pieces = hear(listener, cut(stream, cuts), keep=cuts % 8)
    assert (in_pieces.answers, in_pieces.refused) == (whole.answers, whole.refused)
    assert whole.refused or in_pieces.items == whole.items
    for event in in_pieces.items:
        if not isinstance(event, bytes):
            _say_again(listener, event)
    return whole


def _say_again(listener: Side, event: Event) -> None:
    """What we can say ourselves is heard as what it was."""
    sent = _SENT_BY_CLIENT if listener.server else _SENT_BY_SERVER
    number, encode = sent.get(type(event), (0, None))
    if encode is None:
        return
    if isinstance(event, PortInit) and len(event.name.encode()) >= MAX_PORT_NAME:
        return  # bytes that are no UTF-8 have grown to three each
    message = Framing(mini_header=listener.mini_header).pack(number, encode(event))
    assert hear(listener, [message]).items == [event]


def anything(script: Script) -> bool:
    """A stream as it comes."""
    listener, cuts = side(script), script.number()
    return not _check(listener, script.rest(), cuts).refused


def messages(script: Script) -> bool:
    """Messages with a good header each, as many as there are; all data has to come out."""
    listener, cuts = side(script), script.number()
    framing = Framing(mini_header=listener.mini_header)
    stream, data = bytearray(), bytearray()
    plain = True
    state_comes = False
    left = _MOST
    while script.more:
        number, payload, carried = _message(listener, script, left)
        if not listener.server and number == Msg.MIGRATE:
            state_comes = MigrateFlags.NEED_DATA_TRANSFER in MigrateFlags(payload[0] & 3)
        elif not listener.server and number == Msg.MIGRATE_DATA and state_comes:
            carried, state_comes = payload, False
        stream += framing.pack(number, payload)
        left = max(0, left - max(len(payload), len(carried or b"")))
        plain = plain and carried is not None
        data += carried or b""
    heard = _check(listener, bytes(stream), cuts)
    assert heard.refused or not plain or heard.data == data
    return not heard.refused


def _message(listener: Side, script: Script, left: int) -> tuple[int, bytes, bytes | None]:
    """A message: its number, its payload, and the data that it carries, None where nobody knows.

    Args:
        listener: who is to hear it.
        script: chooses.
        left: bytes that we may still add to what is in the script.
    """
    form = TABLE if listener.channel_type == _MAIN else script.number() % (TABLE + 1)
    if form == TABLE:
        number, payload = _of_table(listener.table, script, left)
        return number, payload, None if number == Msg.COMPRESSED_DATA else b""
    compressed, long = form & 1, form & 2
    if long:
        size = min(left, 16 * script.number(2))
        data = (script.take(4) or b"?") * (size // 4)
    else:
        data = script.take(script.number())
    if not compressed:
        return Msg.DATA, data, data
    block: bytes = lz4.block.compress(data, store_size=False)
    return Msg.COMPRESSED_DATA, struct.pack("<BI", 1, len(data)) + block, data


def _of_table(table: Table, script: Script, left: int) -> tuple[int, bytes]:
    """A message that there is, with a payload that may be none of it."""
    number = script.number()
    if number not in table:
        number = sorted(table)[number % len(table)]
    payload = script.take(script.number())
    kind = table[number]
    if kind.head is not None:  # what is skipped may be long
        payload += bytes(min(left, 1000 * script.number()))
    return number, payload + bytes(max(0, kind.minimum - len(payload)))


PARSERS: Final[Sequence[Parser]] = (anything, messages)
