"""The bodies of messages: what one role encodes the other decodes; what is malformed is refused."""

from __future__ import annotations

from typing import Final

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import ProtocolError
from spicebridge.protocol.constants import (
    MigrateFlags,
    Msg,
    MsgC,
    NotifySeverity,
    PortEventType,
    channel_type_name,
)
from spicebridge.protocol.events import (
    Ack,
    AckSync,
    AttachChannels,
    ChannelsList,
    Disconnecting,
    MainInit,
    Migrate,
    Notify,
    Ping,
    Pong,
    PortEvent,
    PortInit,
    WaitForChannels,
)
from spicebridge.protocol.messages import (
    encode_ack_sync,
    encode_channels_list,
    encode_main_init,
    encode_ping,
    encode_port_event,
    encode_port_init,
    has_port_events,
)
from tests.protocol.wire import (
    MAIN,
    PORT,
    USBREDIR,
    USER,
    Item,
    client_side,
    deliver,
    message,
    server_side,
)

u8 = st.integers(0, 2**8 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
WEBDAV: Final = 11


def from_server(number: int, payload: bytes, channel_type: int = PORT) -> list[Item]:
    """What a client makes of one message."""
    return deliver(client_side(channel_type), message(number, payload))


def from_client(number: int, payload: bytes, channel_type: int = PORT) -> list[Item]:
    """What a server makes of one message."""
    return deliver(server_side(channel_type), message(number, payload))


# What one role encodes, the other decodes


@given(u32, u64)
def test_pong(number: int, timestamp: int) -> None:
    assert encode_ping(Ping(number, timestamp)) == encode_ping(Pong(number, timestamp))
    pong = Pong(number, timestamp)
    assert from_client(MsgC.PONG, encode_ping(pong)) == [pong]


@given(u32)
def test_ack_sync(generation: int) -> None:
    assert from_client(MsgC.ACK_SYNC, encode_ack_sync(AckSync(generation))) == [AckSync(generation)]


@given(u32)
def test_main_init(session_id: int) -> None:
    init = MainInit(session_id)
    assert from_server(Msg.MAIN_INIT, encode_main_init(init), MAIN) == [init]


@given(st.lists(st.tuples(u8, u8), max_size=60))
def test_channels_list(channels: list[tuple[int, int]]) -> None:
    offered = ChannelsList(tuple(channels))
    assert from_server(Msg.MAIN_CHANNELS_LIST, encode_channels_list(offered), MAIN) == [offered]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=250), st.booleans())
def test_port_init(name: str, opened: bool) -> None:
    init = PortInit(name, opened)
    assert from_server(Msg.PORT_INIT, encode_port_init(init)) == [init]


@pytest.mark.parametrize("event", list(PortEventType))
def test_port_event(event: PortEventType) -> None:
    encoded = encode_port_event(PortEvent(event))
    assert from_server(Msg.PORT_EVENT, encoded) == [PortEvent(event)]
    assert from_client(MsgC.PORT_EVENT, encoded) == [PortEvent(event)]


# Byte for byte


def test_port_init_is_what_peers_md_says() -> None:
    encoded = encode_port_init(PortInit("org.x.0", opened=True))
    assert encoded == bytes.fromhex("08000000 09000000 01") + b"org.x.0\0"


def test_main_init_has_8_words_of_which_the_first_is_the_session() -> None:
    encoded = encode_main_init(MainInit(0x01020304))
    assert len(encoded) == 32
    assert encoded[:4] == bytes.fromhex("04030201")


def test_channels_list_is_a_count_and_pairs() -> None:
    encoded = encode_channels_list(ChannelsList(((1, 0), (10, 2), (255, 255))))
    assert encoded == bytes.fromhex("03000000 0100 0a02 ffff")


def test_what_only_servers_send_and_we_never_encode() -> None:
    assert from_server(1, bytes.fromhex("03000000")) == [
        Migrate(MigrateFlags.NEED_FLUSH | MigrateFlags.NEED_DATA_TRANSFER)
    ]
    assert from_server(5, bytes.fromhex("02 0a01 0500000000000000 0b00 ffffffffffffffff")) == [
        WaitForChannels(((10, 1, 5), (11, 0, 2**64 - 1)))
    ]
    assert from_server(5, b"\0") == [WaitForChannels(())]
    assert from_server(6, bytes.fromhex("0100000000000000 02000000")) == [Disconnecting(1, 2)]
    notify = bytes.fromhex("0100000000000000 02000000 01000000 07000000 05000000")
    assert from_server(7, notify + b"hall\xc3\0") == [Notify(NotifySeverity.ERROR, 7, "hall�")]
    assert from_server(7, notify + b"hello\0") == [Notify(NotifySeverity.ERROR, 7, "hello")]
    assert from_server(7, notify + b"hello") == [Notify(NotifySeverity.ERROR, 7, "hello")]


def test_what_only_clients_send_and_we_only_decode() -> None:
    assert from_client(2, b"") == [Ack()]
    assert from_client(6, bytes.fromhex("0100000000000000 02000000")) == [Disconnecting(1, 2)]
    assert from_client(104, b"", MAIN) == [AttachChannels()]


def test_unknown_migrate_flags_are_dropped() -> None:
    assert from_server(1, b"\xff\xff\xff\xff") == [Migrate(MigrateFlags(3))]


def test_the_name_of_a_port_lies_where_its_offset_says() -> None:
    payload = bytes.fromhex("04000000 0c000000 00") + b"gapabc\0"
    assert from_server(Msg.PORT_INIT, payload) == [PortInit("abc", opened=False)]


def test_a_name_of_a_port_without_a_nul_or_with_two_ends_where_it_ends() -> None:
    assert from_server(Msg.PORT_INIT, bytes.fromhex("03000000 09000000 01") + b"abc") == [
        PortInit("abc", opened=True)
    ]
    assert from_server(Msg.PORT_INIT, bytes.fromhex("04000000 09000000 01") + b"a\0b\0") == [
        PortInit("a", opened=True)
    ]


# What is malformed is refused, with its place

HEADER: Final = 6


@pytest.mark.parametrize(
    ("number", "payload", "name", "offset", "expected", "got"),
    [
        (5, b"\1", "WAIT_FOR_CHANNELS", 0, "0 bytes of waits", "1"),
        (5, b"\1" + bytes(11), "WAIT_FOR_CHANNELS", 0, "11 bytes of waits", "1"),
        (7, bytes(8) + b"\3" + bytes(15), "NOTIFY", 8, "a NotifySeverity", "3"),
        (7, bytes(20) + b"\2\0\0\0a", "NOTIFY", 20, "a text of at most 1 bytes", "2"),
        (102, b"\0" + bytes(5), "SPICEVMC_COMPRESSED_DATA", 0, "LZ4 (1)", "0"),
        (102, b"\2" + bytes(5), "SPICEVMC_COMPRESSED_DATA", 0, "LZ4 (1)", "2"),
        (201, bytes(9), "PORT_INIT", 0, "a name of 1 to 1024 bytes", "0"),
        (
            201,
            b"\1\0\0\0\x08\0\0\0\0a",
            "PORT_INIT",
            4,
            "1 bytes of name within 10",
            "offset 8",
        ),
        (
            201,
            b"\1\0\0\0\x0a\0\0\0\0a",
            "PORT_INIT",
            4,
            "1 bytes of name within 10",
            "offset 10",
        ),
        (
            201,
            b"\1\0\0\0\xff\xff\xff\xff\0a",
            "PORT_INIT",
            4,
            "1 bytes of name within 10",
            "offset 4294967295",
        ),
        (202, b"\3", "PORT_EVENT", 0, "a PortEventType", "3"),
    ],
)
def test_a_field_out_of_bounds_is_refused(
    number: int, payload: bytes, name: str, offset: int, expected: str, got: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        from_server(number, payload)
    error = caught.value
    assert (error.message, error.offset) == (name, HEADER + offset)
    assert (error.expected, error.got) == (expected, got)


@pytest.mark.parametrize(
    ("payload", "expected", "got"),
    [(b"\1\0\0\0", "0 channels", "1"), (b"\1\0\0\0\1\0\2\0", "2 channels", "1")],
)
def test_a_list_that_is_not_as_long_as_it_says_is_refused(
    payload: bytes, expected: str, got: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        from_server(Msg.MAIN_CHANNELS_LIST, payload, MAIN)
    error = caught.value
    assert (error.message, error.offset) == ("MAIN_CHANNELS_LIST", HEADER)
    assert (error.expected, error.got) == (expected, got)


def test_a_list_with_half_a_channel_is_refused() -> None:
    with pytest.raises(ProtocolError, match="MAIN_CHANNELS_LIST"):
        from_server(Msg.MAIN_CHANNELS_LIST, b"\1\0\0\0\1\0\2", MAIN)


# COMPRESSED_DATA


def folded(data: bytes, size: int | None = None) -> bytes:
    """The payload of COMPRESSED_DATA; `size` is what it says of itself."""
    block: bytes = lz4.block.compress(data, store_size=False)
    return b"\1" + (len(data) if size is None else size).to_bytes(4, "little") + block


@given(st.binary(max_size=3000))
def test_compressed_data_unfolds_to_what_was_folded_for_both_roles(data: bytes) -> None:
    expected = [data] if data else []
    assert from_server(Msg.COMPRESSED_DATA, folded(data)) == expected
    assert from_client(MsgC.COMPRESSED_DATA, folded(data)) == expected


@pytest.mark.parametrize("said", [0, 1, 99_999, 100_001, 1024 * 1024])
def test_a_block_whose_size_lies_is_refused(said: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        from_server(Msg.COMPRESSED_DATA, folded(bytes(100_000), said))
    error = caught.value
    assert error.message == "SPICEVMC_COMPRESSED_DATA"
    assert error.offset in {HEADER + 1, HEADER + 5}


def test_a_bomb_is_refused_before_it_is_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    def unfold(*_: object, **__: object) -> bytes:
        raise AssertionError("it was unfolded")

    bomb = folded(bytes(2 * 1024 * 1024))
    monkeypatch.setattr("lz4.block.decompress", unfold)
    with pytest.raises(ProtocolError) as caught:
        from_server(Msg.COMPRESSED_DATA, bomb)
    assert caught.value.offset == HEADER + 1
    assert caught.value.got == "2097152"


@given(st.binary(max_size=100), st.integers(0, 2000))
def test_a_block_of_noise_is_refused_or_has_the_size_it_said(noise: bytes, size: int) -> None:
    payload = b"\1" + size.to_bytes(4, "little") + noise
    try:
        items = from_server(Msg.COMPRESSED_DATA, payload)
    except ProtocolError:
        return
    assert sum(len(item) for item in items if isinstance(item, bytes)) == size


# Which channels have which messages


@pytest.mark.parametrize("channel_type", [PORT, WEBDAV, USER, 255])
def test_ports_webdav_and_channels_of_users_have_port_events(channel_type: int) -> None:
    assert has_port_events(channel_type)
    assert from_server(Msg.PORT_EVENT, b"\0", channel_type) == [PortEvent(PortEventType.OPENED)]


@pytest.mark.parametrize("channel_type", [8, USBREDIR, 127])
def test_other_channels_have_data_and_no_port_events(channel_type: int) -> None:
    assert not has_port_events(channel_type)
    assert from_server(Msg.DATA, b"x", channel_type) == [b"x"]
    for number, receive in ((Msg.PORT_EVENT, from_server), (MsgC.PORT_EVENT, from_client)):
        with pytest.raises(ProtocolError, match="a message type of this channel"):
            receive(number, b"\0", channel_type)


def test_channel_types_are_named_as_users_write_them() -> None:
    names = [channel_type_name(each) for each in (1, 8, 9, 10, 11, 128, 255)]
    assert names == ["main", "smartcard", "usbredir", "port", "webdav", "128", "255"]
