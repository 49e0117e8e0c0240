"""What a peer may not say at all, where its stream may end, and what noise can do: little."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spicebridge.errors import ProtocolError
from spicebridge.protocol.constants import (
    MAX_IGNORED,
    MAX_MESSAGE,
    RECEIVE_BUFFER,
    Msg,
    MsgC,
)
from spicebridge.protocol.conversation import Conversation
from spicebridge.protocol.events import Ignored, MigrateBegin, MigrateCancel
from spicebridge.protocol.framing import MAX_HEADER
from tests.protocol.wire import (
    MAIN,
    PORT,
    USBREDIR,
    client_side,
    deliver,
    header,
    message,
    messages,
    pieces,
    refused,
    server_side,
)

# What is no message of the channel


@pytest.mark.parametrize("number", [0, 8, 100, 103, 203, 0xFFFF])
def test_a_message_of_no_known_type_is_refused(number: int) -> None:
    before = message(Msg.DATA, b"abc")
    error = refused(client_side(), before + header(number, 0))
    assert (error.message, error.offset) == ("data header", len(before))
    assert (error.expected, error.got) == ("a message type of this channel", f"{number}")


@pytest.mark.parametrize("number", [7, 102 + 1, 202])
def test_a_client_may_not_say_what_only_servers_say(number: int) -> None:
    assert refused(server_side(), header(number, 0)).got == f"{number}"


def test_sub_messages_are_refused() -> None:
    before = messages(False, (Msg.DATA, b"abc"))
    stream = before + struct.pack("<QHII", 2, Msg.DATA, 10, 4)
    error = refused(client_side(mini_header=False), stream)
    assert (error.message, error.offset) == ("data header", len(before) + 14)
    assert (error.expected, error.got) == ("no sub-messages", "4")


@given(st.binary(max_size=1000))
def test_a_main_channel_never_gives_data(payload: bytes) -> None:
    """101 and 102 mean something else there: live migration, of which a server hears nothing."""
    items = deliver(server_side(MAIN), message(101, payload) + message(102, payload))
    assert [type(item) for item in items] == [Ignored, Ignored]
    assert _heard(101, payload) in (MigrateBegin, "MAIN_MIGRATE_BEGIN")
    assert _heard(102, payload) == ("MAIN_MIGRATE_CANCEL" if payload else MigrateCancel)


def _heard(number: int, payload: bytes) -> object:
    """What one message is on a client's main channel, or the message that its error names."""
    try:
        (item,) = deliver(client_side(MAIN), message(number, payload))
    except ProtocolError as error:
        return error.message
    return type(item)


# The end of the stream


@pytest.mark.parametrize("mini", [True, False], ids=["mini", "full"])
def test_the_stream_may_end_between_messages_and_nowhere_else(mini: bool) -> None:
    stream = messages(
        mini, (Msg.DATA, b"abc"), (Msg.PING, bytes(20)), (Msg.MIGRATE_DATA, b"x"), (6, bytes(12))
    )
    size = 6 if mini else 18
    whole = {0, size + 3, 2 * size + 23, 3 * size + 24, len(stream)}
    for end in range(len(stream) + 1):
        conversation = client_side(mini_header=mini)
        deliver(conversation, stream[:end])
        if end in whole:
            conversation.receive_eof()
            continue
        with pytest.raises(ProtocolError) as caught:
            conversation.receive_eof()
        error = caught.value
        assert (error.message, error.offset) == ("end of the stream", end)
        assert error.got == "nothing"


def test_an_end_inside_data_says_how_much_is_missing() -> None:
    conversation = client_side()
    deliver(conversation, message(Msg.DATA, bytes(100))[:-30])
    with pytest.raises(ProtocolError, match="end of the stream at byte 76: expected 30 bytes"):
        conversation.receive_eof()


# Memory, and noise


@pytest.mark.parametrize(
    ("channel_type", "size"),
    [(PORT, RECEIVE_BUFFER), (USBREDIR, RECEIVE_BUFFER), (MAIN, MAX_MESSAGE + MAX_HEADER)],
)
def test_the_receive_buffer_never_grows(channel_type: int, size: int) -> None:
    conversation = client_side(channel_type)
    first = conversation.receive_buffer().obj
    for number in [113, 2] if channel_type == MAIN else [101, 2]:
        deliver(conversation, message(number, bytes(MAX_IGNORED)), range(1, MAX_IGNORED, 99_999))
        assert conversation.receive_buffer().obj is first
        assert conversation.buffer_size == len(conversation.receive_buffer()) == size


@given(
    st.sampled_from([MAIN, PORT, USBREDIR]),
    st.booleans(),
    st.booleans(),
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.builds(
                header,
                st.sampled_from([*range(1, 8), 101, 102, 103, 104, 111, 112, 116, 117, 201, 202]),
                st.integers(0, 60),
            ),
        ),
        max_size=10,
    ),
    st.sets(st.integers(1, 600), max_size=10),
)
@settings(max_examples=300)
def test_random_bytes_only_ever_raise_protocol_errors(
    channel_type: int, mini: bool, server: bool, noise: list[bytes], cuts: set[int]
) -> None:
    conversation = Conversation(channel_type, mini_header=mini, server=server)
    try:
        for piece in pieces(b"".join(noise), cuts):
            deliver(conversation, piece)
        conversation.receive_eof()
    except ProtocolError:
        pass


def test_a_client_is_told_when_a_server_speaks_to_it_as_a_client_would() -> None:
    assert refused(client_side(), message(MsgC.ACK_SYNC, bytes(3))).message == "MIGRATE"
