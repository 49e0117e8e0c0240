"""The bodies of messages: what they are called, how large they may be, what is in them.

One table a channel and a direction says which messages exist (``spice.proto`` of spice-common).
A `Kind` without a decoder is read and ignored by its name. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, TypeVar

from spicebridge.errors import ProtocolError
from spicebridge.protocol.constants import (
    MAX_CERT_SUBJECT,
    MAX_CHANNELS,
    MAX_HOST_NAME,
    MAX_IGNORED,
    MAX_MESSAGE,
    MAX_NOTIFY_TEXT,
    MAX_PORT_NAME,
    MAX_STORED,
    MAX_UNCOMPRESSED,
    USER_DEFINED_START,
    ChannelType,
    DataCompressionType,
    MigrateFlags,
    MigrationMsg,
    Msg,
    MsgC,
    NotifySeverity,
    PortEventType,
)

# Decoding
from spicebridge.protocol.events import (
    Ack,
    AckSync,
    AttachChannels,
    ChannelsList,
    Disconnecting,
    Event,
    MainInit,
    Migrate,
    MigrateBegin,
    MigrateCancel,
    MigrateEnd,
    MigrateSwitchHost,
    MigrationTarget,
    Notify,
    Ping,
    Pong,
    PortEvent,
    PortInit,
    SeamlessAck,
    SetAck,
    Unfolded,
    WaitForChannels,
)

E = TypeVar("E", bound=Enum)

_U32 = struct.Struct("<I")
_PING = struct.Struct("<IQ")
_SET_ACK = struct.Struct("<II")
_DISCONNECTING = struct.Struct("<QI")
_NOTIFY = struct.Struct("<QIIII")  # time, severity, visibility, what, length of the text
_WAIT = struct.Struct("<BBQ")  # type, id, serial
_MAIN_INIT = struct.Struct("<8I")
_COMPRESSED = struct.Struct("<BI")  # type, size once decompressed
_TARGET = struct.Struct("<HHIIII")  # port, TLS port, size and offset of host, and of the subject
_TARGET_STRINGS = MAX_HOST_NAME + MAX_CERT_SUBJECT
_NO_PORTS = frozenset({0, 0xFFFF})  # what QEMU sends for a port that is not there
_PORT_INIT = struct.Struct("<IIB")  # size of the name with its NUL, its offset, opened


class Body:
    """The payload of one message while it is decoded; knows how to complain.

    Args:
        name: of the message.
        data: its payload.
        position: where the payload begins in the peer's stream.
    """

    def __init__(self, name: str, data: memoryview, position: int) -> None:
        self.name = name
        self.data = data
        self.position = position

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """Reads the fixed part at the start; that it is there was checked before."""
        return layout.unpack_from(self.data)

    def require(self, ok: bool, offset: int, expected: str, got: object) -> None:
        """Raises a ProtocolError about the field at `offset` unless `ok`."""
        if not ok:
            raise ProtocolError(self.name, self.position + offset, expected, f"{got}")

    def enum(self, kind: type[E], value: int, offset: int) -> E:
        """`value` as one of an enumeration."""
        try:
            return kind(value)
        except ValueError:
            raise ProtocolError(
                self.name, self.position + offset, f"a {kind.__name__}", f"{value}"
            ) from None


def _migrate(body: Body) -> Migrate:
    return Migrate(MigrateFlags(body.unpack(_U32)[0] & 3))


def _target(body: Body) -> MigrationTarget:
    port, tls_port, host_size, host_offset, subject_size, subject_offset = body.unpack(_TARGET)
    host = _text(body, 4, host_size, host_offset, MAX_HOST_NAME)
    body.require(bool(host), 4, "the name of a host", "none")
    subject = _text(body, 12, subject_size, subject_offset, MAX_CERT_SUBJECT)
    return MigrationTarget(
        host,
        None if port in _NO_PORTS else port,
        None if tls_port in _NO_PORTS else tls_port,
        subject,
    )


def _text(body: Body, at: int, size: int, offset: int, limit: int) -> str:
    """A string with its NUL whose size and offset stand at `at`; empty where its size is 0."""
    if not size:
        return ""
    body.require(size <= limit, at, f"a string of at most {limit} bytes", size)
    end = len(body.data)
    inside = _TARGET.size <= offset <= end - size
    body.require(inside, at + 4, f"{size} bytes of a string within {end}", f"offset {offset}")
    text = bytes(body.data[offset : offset + size]).partition(b"\0")[0]
    return text.decode(errors="replace")


def _migrate_begin(body: Body) -> MigrateBegin:
    return MigrateBegin(_target(body))


def _migrate_begin_seamless(body: Body) -> MigrateBegin:
    return MigrateBegin(_target(body), _U32.unpack_from(body.data, _TARGET.size)[0])


def _migrate_switch_host(body: Body) -> MigrateSwitchHost:
    return MigrateSwitchHost(_target(body))


def _set_ack(body: Body) -> SetAck:
    return SetAck(*body.unpack(_SET_ACK))


def _ping(body: Body) -> Ping:
    return Ping(*body.unpack(_PING))


def _wait_for_channels(body: Body) -> WaitForChannels:
    count = body.data[0]
    size = 1 + count * _WAIT.size
    body.require(size == len(body.data), 0, f"{len(body.data) - 1} bytes of waits", count)
    return WaitForChannels(tuple(_WAIT.iter_unpack(body.data[1:])))


def _disconnecting(body: Body) -> Disconnecting:
    return Disconnecting(*body.unpack(_DISCONNECTING))


def _notify(body: Body) -> Notify:
    _, severity, _, what, length = body.unpack(_NOTIFY)
    body.require(length <= MAX_NOTIFY_TEXT, 20, f"a text of at most {MAX_NOTIFY_TEXT}", length)
    rest = len(body.data) - _NOTIFY.size
    body.require(length <= rest, 20, f"a text of at most {rest} bytes", length)
    text = bytes(body.data[_NOTIFY.size : _NOTIFY.size + length])
    return Notify(
        body.enum(NotifySeverity, severity, 8), what, text.rstrip(b"\0").decode(errors="replace")
    )


def _main_init(body: Body) -> MainInit:
    return MainInit(body.unpack(_MAIN_INIT)[0])


def _channels_list(body: Body) -> ChannelsList:
    (count,) = body.unpack(_U32)
    body.require(count <= MAX_CHANNELS, 0, f"at most {MAX_CHANNELS} channels", count)
    entries = body.data[_U32.size :]
    body.require(2 * count == len(entries), 0, f"{len(entries) // 2} channels", count)
    return ChannelsList(tuple(zip(entries[::2], entries[1::2], strict=True)))


@lru_cache(maxsize=64)  # who sends little often sends as much again
def stored_head(count: int) -> bytes:
    """What makes a COMPRESSED_DATA of `count` bytes, 1 or more, that follow as they are.

    An LZ4 block may be one sequence of literals and nothing else: a token, whose upper half is
    their count up to 15, and what is left of that in bytes, the last one less than 255
    (lz4_Block_format.md).
    """
    head = _COMPRESSED.pack(DataCompressionType.LZ4, count)
    if count < 15:
        return head + bytes((count << 4,))
    full, rest = divmod(count - 15, 255)
    return head + b"\xf0" + b"\xff" * full + bytes((rest,))


def _compressed_data(body: Body) -> Unfolded:
    kind, size = body.unpack(_COMPRESSED)
    body.require(kind == DataCompressionType.LZ4, 0, "LZ4 (1)", kind)
    body.require(size <= MAX_UNCOMPRESSED, 1, f"at most {MAX_UNCOMPRESSED} bytes", size)
    if 0 < size <= MAX_STORED and body.data[:-size] == stored_head(size):
        return Unfolded(bytes(body.data[-size:]))
    import lz4.block  # here, as most channels never have any

    try:
        data: bytes = lz4.block.decompress(body.data[_COMPRESSED.size :], uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise ProtocolError(
            body.name, body.position + _COMPRESSED.size, "an LZ4 block", str(error)
        ) from error
    body.require(len(data) == size, 1, f"{len(data)} bytes", size)
    return Unfolded(data)


def _port_init(body: Body) -> PortInit:
    size, offset, opened = body.unpack(_PORT_INIT)
    body.require(1 <= size <= MAX_PORT_NAME, 0, f"a name of 1 to {MAX_PORT_NAME} bytes", size)
    end = len(body.data)
    inside = _PORT_INIT.size <= offset <= end - size
    body.require(inside, 4, f"{size} bytes of name within {end}", f"offset {offset}")
    name = bytes(body.data[offset : offset + size]).partition(b"\0")[0]
    return PortInit(name.decode(errors="replace"), bool(opened))


def _port_event(body: Body) -> PortEvent:
    return PortEvent(body.enum(PortEventType, body.data[0], 0))


def _ack_sync(body: Body) -> AckSync:
    return AckSync(*body.unpack(_U32))


def _pong(body: Body) -> Pong:
    return Pong(*body.unpack(_PING))


# Encoding, for the side that sends it


def encode_version(version: int) -> bytes:
    """4 bytes: the payload of MAIN_MIGRATE_DST_DO_SEAMLESS."""
    return _U32.pack(version)


def encode_ack_sync(event: AckSync) -> bytes:
    """4 bytes."""
    return _U32.pack(event.generation)


def encode_ping(event: Ping | Pong) -> bytes:
    """12 bytes; PING and PONG are the same."""
    return _PING.pack(event.id, event.timestamp)


def encode_main_init(event: MainInit) -> bytes:
    """32 bytes: one session, no display, a mouse on the client's side, no agent."""
    client_mouse = 2  # SPICE_MOUSE_MODE_CLIENT
    return _MAIN_INIT.pack(event.session_id, 0, client_mouse, client_mouse, 0, 0, 0, 0)


def encode_channels_list(event: ChannelsList) -> bytes:
    """4 bytes and 2 for each channel."""
    return _U32.pack(len(event.channels)) + bytes(
        byte for channel in event.channels for byte in channel
    )


def encode_port_init(event: PortInit) -> bytes:
    """9 bytes and the name with its NUL."""
    name = event.name.encode() + b"\0"
    return _PORT_INIT.pack(len(name), _PORT_INIT.size, event.opened) + name


def encode_port_event(event: PortEvent) -> bytes:
    """1 byte."""
    return bytes((event.event,))


# The tables


@dataclass(frozen=True)
class Kind:
    """One message type.

    Attributes:
        name: as in spice-protocol, without SPICE_MSG.
        decode: makes an event of a body; None for a message that is ignored.
        minimum: bytes that the payload must have.
        maximum: bytes that it may have.
        head: bytes that are enough to decode it, the rest being skipped; None where all are.
    """

    name: str
    decode: Callable[[Body], Event] | None = None
    minimum: int = 0
    maximum: int = MAX_IGNORED
    head: int | None = None


Table = Mapping[int, Kind]


def _ignored(first: int, names: Sequence[str]) -> dict[int, Kind]:
    return {first + index: Kind(name, head=0) for index, name in enumerate(names)}


def _fixed(name: str, decode: Callable[[Body], Event], size: int) -> Kind:
    return Kind(name, decode, size, size)


_SERVER_BASE: Final[Table] = {
    Msg.MIGRATE: _fixed("MIGRATE", _migrate, 4),
    Msg.MIGRATE_DATA: Kind("MIGRATE_DATA", head=0),
    Msg.SET_ACK: _fixed("SET_ACK", _set_ack, 8),
    Msg.PING: Kind("PING", _ping, 12, MAX_IGNORED, head=12),
    Msg.WAIT_FOR_CHANNELS: Kind("WAIT_FOR_CHANNELS", _wait_for_channels, 1, 1 + 255 * 10),
    Msg.DISCONNECTING: _fixed("DISCONNECTING", _disconnecting, 12),
    Msg.NOTIFY: Kind("NOTIFY", _notify, 24, 25 + MAX_NOTIFY_TEXT),
}

_SERVER_MAIN: Final[Table] = {
    **_SERVER_BASE,
    MigrationMsg.BEGIN: Kind(
        "MAIN_MIGRATE_BEGIN", _migrate_begin, _TARGET.size, _TARGET.size + _TARGET_STRINGS
    ),
    MigrationMsg.CANCEL: _fixed("MAIN_MIGRATE_CANCEL", lambda _: MigrateCancel(), 0),
    Msg.MAIN_INIT: _fixed("MAIN_INIT", _main_init, 32),
    Msg.MAIN_CHANNELS_LIST: Kind("MAIN_CHANNELS_LIST", _channels_list, 4, 4 + 2 * MAX_CHANNELS),
    **_ignored(
        105,
        [
            "MAIN_MOUSE_MODE",
            "MAIN_MULTI_MEDIA_TIME",
            "MAIN_AGENT_CONNECTED",
            "MAIN_AGENT_DISCONNECTED",
            "MAIN_AGENT_DATA",
            "MAIN_AGENT_TOKEN",
        ],
    ),
    MigrationMsg.SWITCH_HOST: Kind(
        "MAIN_MIGRATE_SWITCH_HOST",
        _migrate_switch_host,
        _TARGET.size,
        _TARGET.size + _TARGET_STRINGS,
    ),
    MigrationMsg.END: _fixed("MAIN_MIGRATE_END", lambda _: MigrateEnd(), 0),
    **_ignored(113, ["MAIN_NAME", "MAIN_UUID", "MAIN_AGENT_CONNECTED_TOKENS"]),
    MigrationMsg.BEGIN_SEAMLESS: Kind(
        "MAIN_MIGRATE_BEGIN_SEAMLESS",
        _migrate_begin_seamless,
        _TARGET.size + _U32.size,
        _TARGET.size + _U32.size + _TARGET_STRINGS,
    ),
    MigrationMsg.DST_SEAMLESS_ACK: _fixed(
        "MAIN_MIGRATE_DST_SEAMLESS_ACK", lambda _: SeamlessAck(agreed=True), 0
    ),
    MigrationMsg.DST_SEAMLESS_NACK: _fixed(
        "MAIN_MIGRATE_DST_SEAMLESS_NACK", lambda _: SeamlessAck(agreed=False), 0
    ),
}

_COMPRESSED_DATA: Final = Kind(
    "SPICEVMC_COMPRESSED_DATA", _compressed_data, _COMPRESSED.size, MAX_MESSAGE
)

_SERVER_VMC: Final[Table] = {**_SERVER_BASE, Msg.COMPRESSED_DATA: _COMPRESSED_DATA}

_SERVER_PORT: Final[Table] = {
    **_SERVER_VMC,
    Msg.PORT_INIT: Kind("PORT_INIT", _port_init, 9, 9 + MAX_PORT_NAME),
    Msg.PORT_EVENT: _fixed("PORT_EVENT", _port_event, 1),
}

_CLIENT_BASE: Final[Table] = {
    MsgC.ACK_SYNC: _fixed("ACK_SYNC", _ack_sync, 4),
    MsgC.ACK: _fixed("ACK", lambda _: Ack(), 0),
    MsgC.PONG: Kind("PONG", _pong, 12, MAX_IGNORED, head=12),
    **_ignored(4, ["MIGRATE_FLUSH_MARK", "MIGRATE_DATA"]),
    MsgC.DISCONNECTING: _fixed("DISCONNECTING", _disconnecting, 12),
}

_CLIENT_MAIN: Final[Table] = {
    **_CLIENT_BASE,
    **_ignored(101, ["MAIN_CLIENT_INFO", "MAIN_MIGRATE_CONNECTED", "MAIN_MIGRATE_CONNECT_ERROR"]),
    MsgC.MAIN_ATTACH_CHANNELS: _fixed("MAIN_ATTACH_CHANNELS", lambda _: AttachChannels(), 0),
    **_ignored(
        105,
        [
            "MAIN_MOUSE_MODE_REQUEST",
            "MAIN_AGENT_START",
            "MAIN_AGENT_DATA",
            "MAIN_AGENT_TOKEN",
            "MAIN_MIGRATE_END",
            "MAIN_MIGRATE_DST_DO_SEAMLESS",
            "MAIN_MIGRATE_CONNECTED_SEAMLESS",
            "MAIN_QUALITY_INDICATOR",
        ],
    ),
}

_CLIENT_VMC: Final[Table] = {**_CLIENT_BASE, MsgC.COMPRESSED_DATA: _COMPRESSED_DATA}

_CLIENT_PORT: Final[Table] = {
    **_CLIENT_VMC,
    MsgC.PORT_EVENT: _fixed("PORT_EVENT", _port_event, 1),
}


def has_port_events(channel_type: int) -> bool:
    """Whether a channel tells its name and when it opens and closes.

    libspice-server does so for ports and webdav. For the types of users there is no other server
    than ours, and an application needs to know there too when the other side has gone.
    """
    return (
        channel_type in {ChannelType.PORT, ChannelType.WEBDAV} or channel_type >= USER_DEFINED_START
    )


def messages_from_server(channel_type: int) -> Table:
    """The messages that a server may send on a channel of this type, DATA apart."""
    if channel_type == ChannelType.MAIN:
        return _SERVER_MAIN
    return _SERVER_PORT if has_port_events(channel_type) else _SERVER_VMC


def messages_from_client(channel_type: int) -> Table:
    """The messages that a client may send on a channel of this type, DATA apart."""
    if channel_type == ChannelType.MAIN:
        return _CLIENT_MAIN
    return _CLIENT_PORT if has_port_events(channel_type) else _CLIENT_VMC
