"""Every size from the wire has its limit: at the limit all is well, one more is refused."""

from __future__ import annotations

import struct
from typing import Final

import lz4.block
import pytest

from spicebridge.protocol.constants import (
    MAX_CHANNELS,
    MAX_DATA,
    MAX_IGNORED,
    MAX_MESSAGE,
    MAX_NOTIFY_TEXT,
    MAX_PORT_NAME,
    MAX_UNCOMPRESSED,
    Msg,
    NotifySeverity,
)
from spicebridge.protocol.events import ChannelsList, Ignored, MainInit, Notify, PortInit
from tests.protocol.wire import (
    MAIN,
    PORT,
    client_side,
    deliver,
    header,
    message,
    messages,
    refused,
    server_side,
)

NOTIFY_HEAD: Final = struct.Struct("<QIIII")


# At the limit


def test_a_data_message_of_the_limit_is_taken() -> None:
    conversation = client_side()
    deliver(conversation, header(Msg.DATA, MAX_DATA))
    received = 0
    while received < MAX_DATA:
        buffer = conversation.receive_buffer()
        count = min(len(buffer), MAX_DATA - received)
        received += count
        (view,) = conversation.receive_data(count)
        assert isinstance(view, memoryview)
        assert len(view) == count
    assert deliver(conversation, message(Msg.DATA, b"next")) == [b"next"]


def test_an_ignored_message_of_the_limit_is_skipped() -> None:
    conversation = client_side(MAIN)
    stream = message(113, bytes(MAX_IGNORED)) + message(Msg.MAIN_INIT, bytes(32))
    assert deliver(conversation, stream) == [Ignored("MAIN_NAME"), MainInit(0)]


def test_a_notify_of_the_limit_is_taken() -> None:
    text = b"x" * MAX_NOTIFY_TEXT
    payload = NOTIFY_HEAD.pack(0, 0, 0, 0, len(text)) + text + b"\0"
    expected = Notify(NotifySeverity.INFO, 0, text.decode())
    assert deliver(client_side(), message(Msg.NOTIFY, payload)) == [expected]


def test_a_list_of_the_limit_is_taken() -> None:
    payload = MAX_CHANNELS.to_bytes(4, "little") + bytes(2 * MAX_CHANNELS)
    expected = ChannelsList(((0, 0),) * MAX_CHANNELS)
    assert deliver(client_side(MAIN), message(Msg.MAIN_CHANNELS_LIST, payload)) == [expected]


def test_a_port_name_of_the_limit_is_taken() -> None:
    name = b"x" * (MAX_PORT_NAME - 1) + b"\0"
    payload = struct.pack("<IIB", len(name), 9, 1) + name
    expected = PortInit("x" * (MAX_PORT_NAME - 1), opened=True)
    assert deliver(client_side(), message(Msg.PORT_INIT, payload)) == [expected]


def test_compressed_data_of_both_limits_is_taken() -> None:
    block: bytes = lz4.block.compress(bytes(MAX_UNCOMPRESSED), store_size=False)
    payload = struct.pack("<BI", 1, MAX_UNCOMPRESSED) + block
    assert deliver(client_side(), message(102, payload)) == [bytes(MAX_UNCOMPRESSED)]
    # literals alone, as long as the message may be: LZ4 needs a byte for each 255 of them
    literals = b"x" * (MAX_MESSAGE - 5 - 1 - 514)
    block = b"\xf0" + lz4_length(len(literals) - 15) + literals
    block = block.ljust(MAX_MESSAGE - 5, b"x")
    grown = len(block) - 1 - len(lz4_length(len(literals) - 15))
    block = b"\xf0" + lz4_length(grown - 15) + b"x" * grown
    payload = struct.pack("<BI", 1, grown) + block
    assert len(payload) == MAX_MESSAGE
    assert deliver(client_side(), message(102, payload)) == [b"x" * grown]


def lz4_length(rest: int) -> bytes:
    """How LZ4 writes what is left of a length above 15."""
    return b"\xff" * (rest // 255) + bytes((rest % 255,))


def test_as_many_waits_as_a_byte_can_count_are_taken() -> None:
    payload = b"\xff" + bytes(255 * 10)
    assert len(deliver(client_side(), message(Msg.WAIT_FOR_CHANNELS, payload))) == 1


# One more, or one less


@pytest.mark.parametrize("mini", [True, False], ids=["mini", "full"])
@pytest.mark.parametrize(
    ("channel_type", "number", "size", "name", "allowed"),
    [
        (PORT, 101, MAX_DATA + 1, "SPICEVMC_DATA", "0 to 67108864"),
        (PORT, 101, 2**32 - 1, "SPICEVMC_DATA", "0 to 67108864"),
        (PORT, 102, MAX_MESSAGE + 1, "SPICEVMC_COMPRESSED_DATA", "5 to 131072"),
        (PORT, 102, 4, "SPICEVMC_COMPRESSED_DATA", "5 to 131072"),
        (PORT, 1, 3, "MIGRATE", "4"),
        (PORT, 1, 5, "MIGRATE", "4"),
        (PORT, 2, MAX_IGNORED + 1, "MIGRATE_DATA", "0 to 4194304"),
        (PORT, 3, 7, "SET_ACK", "8"),
        (PORT, 3, 9, "SET_ACK", "8"),
        (PORT, 4, 11, "PING", "12 to 4194304"),
        (PORT, 4, MAX_IGNORED + 1, "PING", "12 to 4194304"),
        (PORT, 5, 0, "WAIT_FOR_CHANNELS", "1 to 2551"),
        (PORT, 5, 2552, "WAIT_FOR_CHANNELS", "1 to 2551"),
        (PORT, 6, 11, "DISCONNECTING", "12"),
        (PORT, 7, 23, "NOTIFY", "24 to 4121"),
        (PORT, 7, 4122, "NOTIFY", "24 to 4121"),
        (PORT, 201, 8, "PORT_INIT", "9 to 1033"),
        (PORT, 201, 1034, "PORT_INIT", "9 to 1033"),
        (PORT, 202, 0, "PORT_EVENT", "1"),
        (PORT, 202, 2, "PORT_EVENT", "1"),
        (MAIN, 103, 31, "MAIN_INIT", "32"),
        (MAIN, 103, 33, "MAIN_INIT", "32"),
        (MAIN, 104, 3, "MAIN_CHANNELS_LIST", "4 to 8196"),
        (MAIN, 104, 8197, "MAIN_CHANNELS_LIST", "4 to 8196"),
        (MAIN, 113, MAX_IGNORED + 1, "MAIN_NAME", "0 to 4194304"),
    ],
)
def test_a_server_that_oversteps_a_size_is_told_by_message_and_place(
    channel_type: int, number: int, size: int, name: str, allowed: str, mini: bool
) -> None:
    before = messages(mini, (Msg.PING, bytes(12)))
    conversation = client_side(channel_type, mini_header=mini)
    error = refused(conversation, before + header(number, size, mini=mini))
    assert error.message == name
    assert error.offset == len(before) + (2 if mini else 10)
    assert error.expected == f"a size of {allowed} bytes"
    assert error.got == f"{size}"


@pytest.mark.parametrize(
    ("channel_type", "number", "size", "name", "allowed"),
    [
        (PORT, 101, MAX_DATA + 1, "SPICEVMC_DATA", "0 to 67108864"),
        (PORT, 102, MAX_MESSAGE + 1, "SPICEVMC_COMPRESSED_DATA", "5 to 131072"),
        (PORT, 1, 3, "ACK_SYNC", "4"),
        (PORT, 2, 1, "ACK", "0"),
        (PORT, 3, 11, "PONG", "12 to 4194304"),
        (PORT, 5, MAX_IGNORED + 1, "MIGRATE_DATA", "0 to 4194304"),
        (PORT, 6, 13, "DISCONNECTING", "12"),
        (PORT, 201, 2, "PORT_EVENT", "1"),
        (MAIN, 104, 1, "MAIN_ATTACH_CHANNELS", "0"),
        (MAIN, 107, MAX_IGNORED + 1, "MAIN_AGENT_DATA", "0 to 4194304"),
    ],
)
def test_a_client_that_oversteps_a_size_is_told_by_message_and_place(
    channel_type: int, number: int, size: int, name: str, allowed: str
) -> None:
    error = refused(server_side(channel_type), header(number, size))
    assert (error.message, error.offset) == (name, 2)
    assert (error.expected, error.got) == (f"a size of {allowed} bytes", f"{size}")


@pytest.mark.parametrize(
    ("channel_type", "number", "payload", "offset", "expected"),
    [
        (
            PORT,
            7,
            NOTIFY_HEAD.pack(0, 0, 0, 0, MAX_NOTIFY_TEXT + 1) + bytes(MAX_NOTIFY_TEXT + 1),
            20,
            "a text of at most 4096",
        ),
        (
            PORT,
            201,
            struct.pack("<IIB", MAX_PORT_NAME + 1, 9, 1) + bytes(MAX_PORT_NAME),
            0,
            "a name of 1 to 1024 bytes",
        ),
        (PORT, 102, struct.pack("<BI", 1, MAX_UNCOMPRESSED + 1), 1, "at most 1048576 bytes"),
        (
            MAIN,
            104,
            (MAX_CHANNELS + 1).to_bytes(4, "little") + bytes(2 * MAX_CHANNELS),
            0,
            "at most 4096 channels",
        ),
    ],
    ids=["NOTIFY", "PORT_INIT", "COMPRESSED_DATA", "CHANNELS_LIST"],
)
def test_a_count_inside_a_message_has_its_limit_too(
    channel_type: int, number: int, payload: bytes, offset: int, expected: str
) -> None:
    error = refused(client_side(channel_type), message(number, payload))
    assert (error.offset, error.expected) == (6 + offset, expected)


def test_what_unfolds_to_much_is_taken_one_after_another() -> None:
    """256 KiB of blocks could unfold to 64 MiB at once."""
    block = lz4.block.compress(bytes(MAX_UNCOMPRESSED), store_size=False)
    payload = struct.pack("<BI", 1, MAX_UNCOMPRESSED) + block
    stream = message(Msg.COMPRESSED_DATA, payload) * 3
    side = client_side(PORT)
    buffer = side.receive_buffer()
    buffer[: len(stream)] = stream
    (first,) = side.receive_data(len(stream))
    given = [first]
    while side.more:
        assert side.control == b""
        given += side.receive_data(0)
        assert len(given) <= 3
    assert [len(each) for each in given if isinstance(each, memoryview)] == [MAX_UNCOMPRESSED] * 3
