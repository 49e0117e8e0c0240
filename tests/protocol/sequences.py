"""Any sequence of messages that a peer may send, and what must come of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import lz4.block
from hypothesis import strategies as st

from spicebridge.protocol.constants import (
    MigrateFlags,
    MigrationMsg,
    Msg,
    MsgC,
    NotifySeverity,
    PortEventType,
)
from spicebridge.protocol.events import (
    Ack,
    AckSync,
    AttachChannels,
    ChannelsList,
    Disconnecting,
    Event,
    Ignored,
    MainInit,
    Migrate,
    MigrateBegin,
    MigrateCancel,
    MigrateData,
    MigrateEnd,
    MigrateSwitchHost,
    MigrationTarget,
    Notify,
    Pong,
    PortEvent,
    PortInit,
    SeamlessAck,
    WaitForChannels,
)
from spicebridge.protocol.framing import Framing
from spicebridge.protocol.messages import (
    encode_channels_list,
    encode_main_init,
    encode_port_event,
    encode_port_init,
)
from tests.protocol.wire import Item, append, encode_begin, encode_target


@dataclass(frozen=True)
class Said:
    """One message of the peer, and what must come of it.

    Attributes:
        number: message type.
        payload: its payload.
        data: bytes of data that it carries.
        event: event that it becomes.
        pong: the 12 bytes that must come back.
        set_ack: generation and window that it sets.
    """

    number: int
    payload: bytes = field(repr=False)
    data: bytes = field(default=b"", repr=False)
    event: Event | None = None
    pong: bytes = b""
    set_ack: tuple[int, int] | None = None


u8 = st.integers(0, 2**8 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
padding = st.one_of(st.binary(max_size=40), st.sampled_from([0, 300_000]).map(bytes))

small = st.binary(max_size=100)
large = st.builds(
    lambda size, seed: (bytes(range(seed, 256)) * (size // (256 - seed) + 1))[:size],
    st.sampled_from([1, 65_536, 262_143, 262_144, 262_145, 600_000]),
    st.integers(0, 255),
)


def _compressed(data: bytes) -> Said:
    block: bytes = lz4.block.compress(data, store_size=False)
    return Said(Msg.COMPRESSED_DATA, struct.pack("<BI", 1, len(data)) + block, data=data)


def _ping(fixed: bytes, rest: bytes) -> Said:
    return Said(Msg.PING, fixed + rest, pong=fixed)


def _set_ack(generation: int, window: int) -> Said:
    return Said(Msg.SET_ACK, struct.pack("<II", generation, window), set_ack=(generation, window))


def _notify(severity: NotifySeverity, what: int, text: str) -> Said:
    encoded = text.encode()
    payload = struct.pack("<QIIII", 9, severity, 1, what, len(encoded)) + encoded + b"\0"
    return Said(Msg.NOTIFY, payload, event=Notify(severity, what, text))


def _disconnecting(timestamp: int, reason: int) -> Said:
    payload = struct.pack("<QI", timestamp, reason)
    return Said(Msg.DISCONNECTING, payload, event=Disconnecting(timestamp, reason))


def _wait(waits: list[tuple[int, int, int]]) -> Said:
    payload = bytes((len(waits),)) + b"".join(struct.pack("<BBQ", *each) for each in waits)
    return Said(Msg.WAIT_FOR_CHANNELS, payload, event=WaitForChannels(tuple(waits)))


def _ignored(first: int, names: str) -> st.SearchStrategy[Said]:
    """Messages that mean nothing to us, numbered from `first`."""
    known = list(enumerate(names.split(), first))
    return st.builds(
        lambda known, payload: Said(known[0], payload, event=Ignored(known[1])),
        st.sampled_from(known),
        padding,
    )


data_messages = st.one_of(small, small, large).map(lambda data: Said(Msg.DATA, data, data=data))
compressed_messages = st.one_of(small, st.integers(0, 100_000).map(bytes)).map(_compressed)
port_events = st.sampled_from(PortEventType)

server_base = [
    st.builds(_ping, st.binary(min_size=12, max_size=12), padding),
    st.builds(_set_ack, u32, st.one_of(st.integers(0, 4), u32)),
    st.builds(
        _notify,
        st.sampled_from(NotifySeverity),
        u32,
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    ),
    st.builds(_disconnecting, u64, u32),
    st.builds(_wait, st.lists(st.tuples(u8, u8, u64), max_size=5)),
    st.integers(0, 3).map(
        lambda flags: Said(
            Msg.MIGRATE, flags.to_bytes(4, "little"), event=Migrate(MigrateFlags(flags))
        )
    ),
    _ignored(2, "MIGRATE_DATA"),
]
server_port = st.one_of(
    data_messages,
    compressed_messages,
    *server_base,
    st.builds(PortInit, st.sampled_from(["", "org.x.0", "ä"]), st.booleans()).map(
        lambda init: Said(Msg.PORT_INIT, encode_port_init(init), event=init)
    ),
    port_events.map(
        lambda event: Said(
            Msg.PORT_EVENT, encode_port_event(PortEvent(event)), event=PortEvent(event)
        )
    ),
)
migration_targets = st.builds(
    MigrationTarget,
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    st.one_of(st.none(), st.integers(1, 0xFFFE)),
    st.one_of(st.none(), st.integers(1, 0xFFFE)),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
migration_messages = [
    migration_targets.map(
        lambda target: Said(
            MigrationMsg.BEGIN, encode_target(target), event=MigrateBegin(target, None)
        )
    ),
    st.builds(MigrateBegin, migration_targets, u32).map(
        lambda begin: Said(MigrationMsg.BEGIN_SEAMLESS, encode_begin(begin), event=begin)
    ),
    migration_targets.map(
        lambda target: Said(
            MigrationMsg.SWITCH_HOST, encode_target(target), event=MigrateSwitchHost(target)
        )
    ),
    st.sampled_from(
        [
            Said(MigrationMsg.CANCEL, b"", event=MigrateCancel()),
            Said(MigrationMsg.END, b"", event=MigrateEnd()),
            Said(MigrationMsg.DST_SEAMLESS_ACK, b"", event=SeamlessAck(agreed=True)),
            Said(MigrationMsg.DST_SEAMLESS_NACK, b"", event=SeamlessAck(agreed=False)),
        ]
    ),
]
server_main = st.one_of(
    *server_base,
    *migration_messages,
    u32.map(lambda number: MainInit(number)).map(
        lambda init: Said(Msg.MAIN_INIT, encode_main_init(init), event=init)
    ),
    st.lists(st.tuples(u8, u8), max_size=9).map(
        lambda channels: Said(
            Msg.MAIN_CHANNELS_LIST,
            encode_channels_list(ChannelsList(tuple(channels))),
            event=ChannelsList(tuple(channels)),
        )
    ),
    _ignored(
        105,
        "MAIN_MOUSE_MODE MAIN_MULTI_MEDIA_TIME MAIN_AGENT_CONNECTED MAIN_AGENT_DISCONNECTED"
        " MAIN_AGENT_DATA MAIN_AGENT_TOKEN",
    ),
    _ignored(113, "MAIN_NAME MAIN_UUID MAIN_AGENT_CONNECTED_TOKENS"),
)
client_base = [
    u32.map(lambda n: Said(MsgC.ACK_SYNC, n.to_bytes(4, "little"), event=AckSync(n))),
    st.just(Said(MsgC.ACK, b"", event=Ack())),
    st.builds(
        lambda number, time, rest: Said(
            MsgC.PONG, struct.pack("<IQ", number, time) + rest, event=Pong(number, time)
        ),
        u32,
        u64,
        padding,
    ),
    st.builds(_disconnecting, u64, u32),
    _ignored(4, "MIGRATE_FLUSH_MARK MIGRATE_DATA"),
]
client_port = st.one_of(
    data_messages,
    compressed_messages,
    *client_base,
    port_events.map(
        lambda event: Said(
            MsgC.PORT_EVENT, encode_port_event(PortEvent(event)), event=PortEvent(event)
        )
    ),
)
client_main = st.one_of(
    *client_base,
    st.just(Said(MsgC.MAIN_ATTACH_CHANNELS, b"", event=AttachChannels())),
    _ignored(101, "MAIN_CLIENT_INFO MAIN_MIGRATE_CONNECTED MAIN_MIGRATE_CONNECT_ERROR"),
    _ignored(
        105,
        "MAIN_MOUSE_MODE_REQUEST MAIN_AGENT_START MAIN_AGENT_DATA MAIN_AGENT_TOKEN"
        " MAIN_MIGRATE_END MAIN_MIGRATE_DST_DO_SEAMLESS MAIN_MIGRATE_CONNECTED_SEAMLESS"
        " MAIN_QUALITY_INDICATOR",
    ),
)

SEQUENCES = {
    ("server", "port"): server_port,
    ("server", "main"): server_main,
    ("client", "port"): client_port,
    ("client", "main"): client_main,
}
"""What a peer in this role may say on such a channel."""


def expected_items(said: Sequence[Said]) -> list[Item]:
    """What a conversation must give for these messages."""
    items: list[Item] = []
    for each in _with_states(said):
        if isinstance(each.event, MigrateData):
            items.append(each.event)
        if each.data:
            append(items, each.data)
        if each.event is not None and not isinstance(each.event, MigrateData):
            items.append(each.event)
    return items


def _with_states(said: Sequence[Said]) -> Iterator[Said]:
    """These messages; a MIGRATE_DATA that MIGRATE has announced is passed on as it comes."""
    announced = False
    for each in said:
        if isinstance(each.event, Migrate):
            announced = MigrateFlags.NEED_DATA_TRANSFER in each.event.flags
        if announced and each.event == Ignored("MIGRATE_DATA"):
            announced = False
            yield Said(
                each.number, each.payload, data=each.payload, event=MigrateData(len(each.payload))
            )
        else:
            yield each


def expected_answers(said: Sequence[Said], mini_header: bool) -> bytes:
    """What a client must send back by itself: PONG, ACK_SYNC, and an ACK every window."""
    framing = Framing(mini_header=mini_header)
    answers = b""
    window = left = 0
    for each in _with_states(said):
        if isinstance(each.event, MigrateData):  # the channel goes on elsewhere: nobody counts
            continue
        if each.set_ack is not None:
            generation, window = each.set_ack
            left = window
            answers += framing.pack(MsgC.ACK_SYNC, generation.to_bytes(4, "little"))
            continue
        if window:
            left -= 1
            if not left:
                left = window
                answers += framing.pack(MsgC.ACK, b"")
        if each.pong:
            answers += framing.pack(MsgC.PONG, each.pong)
    return answers
