"""A conversation gives the same events, data and answers, however the peer's bytes are cut."""

from __future__ import annotations

import struct
from typing import Final

import lz4.block
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spicebridge.protocol.constants import MAX_STORED, SEND_DATA, Msg, MsgC
from spicebridge.protocol.conversation import Conversation
from spicebridge.protocol.events import Ack, AckSync, Ignored, PortEvent
from spicebridge.protocol.messages import stored_head
from tests.protocol.sequences import SEQUENCES, Said, expected_answers, expected_items
from tests.protocol.wire import (
    MAIN,
    PORT,
    USBREDIR,
    client_side,
    deliver,
    message,
    messages,
    say,
    say_data,
    server_side,
    take_control,
)

TYPES: Final = {"main": MAIN, "port": PORT}

relaxed = settings(max_examples=60)


def hearing(role: str, channel: str, mini: bool) -> Conversation:
    """The conversation of the side that hears what a peer in `role` says."""
    side = client_side if role == "server" else server_side
    return side(TYPES[channel], mini_header=mini)


@pytest.mark.parametrize(("role", "channel"), list(SEQUENCES))
@given(data=st.data(), mini=st.booleans())
@relaxed
def test_bytes_cut_anywhere_give_the_same_events_data_and_answers(
    role: str, channel: str, data: st.DataObject, mini: bool
) -> None:
    said: list[Said] = data.draw(st.lists(SEQUENCES[role, channel], max_size=8))
    stream = messages(mini, *((each.number, each.payload) for each in said))
    cuts = data.draw(st.sets(st.integers(1, max(1, len(stream) - 1)), max_size=20))

    conversation = hearing(role, channel, mini)
    assert deliver(conversation, stream, cuts) == expected_items(said)
    assert bytes(conversation.control) == expected_answers(said, mini)
    conversation.receive_eof()


@pytest.mark.parametrize(("role", "channel"), list(SEQUENCES))
@given(data=st.data(), mini=st.booleans())
@settings(max_examples=20)
def test_bytes_one_by_one_give_the_same_as_all_at_once(
    role: str, channel: str, data: st.DataObject, mini: bool
) -> None:
    short = SEQUENCES[role, channel].filter(lambda each: len(each.payload) < 200)
    said: list[Said] = data.draw(st.lists(short, max_size=6))
    stream = messages(mini, *((each.number, each.payload) for each in said))

    conversation = hearing(role, channel, mini)
    assert deliver(conversation, stream, range(1, len(stream))) == expected_items(said)
    assert bytes(conversation.control) == expected_answers(said, mini)


# Answers


def test_a_ping_is_answered_with_its_12_bytes_and_not_its_padding() -> None:
    conversation = client_side()
    assert deliver(conversation, message(Msg.PING, b"0123456789ab" + bytes(256_000))) == []
    assert conversation.control == message(MsgC.PONG, b"0123456789ab")


def test_a_ping_is_answered_before_its_padding_has_come() -> None:
    """So that a PONG does not wait for 256,000 bytes over a slow line."""
    conversation = client_side(MAIN)
    deliver(conversation, message(Msg.PING, b"0123456789ab" + bytes(256_000))[:18])
    assert conversation.control == message(MsgC.PONG, b"0123456789ab")


def test_set_ack_is_answered_with_its_generation() -> None:
    conversation = client_side()
    deliver(conversation, message(Msg.SET_ACK, struct.pack("<II", 7, 20)))
    assert conversation.control == message(MsgC.ACK_SYNC, (7).to_bytes(4, "little"))


def with_window(conversation: Conversation, window: int) -> Conversation:
    """The conversation after a SET_ACK, its ACK_SYNC taken."""
    deliver(conversation, message(Msg.SET_ACK, struct.pack("<II", 1, window)))
    take_control(conversation)
    return conversation


@pytest.mark.parametrize("window", [1, 2, 20])
def test_every_window_of_messages_has_exactly_one_ack(window: int) -> None:
    conversation = with_window(client_side(), window)
    acked = []
    for number in range(1, 3 * window + 1):
        deliver(conversation, message(Msg.DATA, b"x"))
        if ack := take_control(conversation):
            assert ack == message(MsgC.ACK)
            acked.append(number)
    assert acked == [window, 2 * window, 3 * window]


def test_a_window_of_0_wants_no_acks() -> None:
    conversation = with_window(with_window(client_side(), 1), 0)
    deliver(conversation, message(Msg.DATA, b"x") * 10)
    assert not conversation.control


def test_a_large_data_is_one_message_of_the_window_though_it_comes_in_many_reads() -> None:
    conversation = with_window(client_side(), 2)
    deliver(conversation, message(Msg.DATA, bytes(1_000_000)), range(0, 1_000_000, 50_000))
    assert not conversation.control
    deliver(conversation, message(Msg.DATA))
    assert take_control(conversation) == message(MsgC.ACK)


@pytest.mark.parametrize("number", [Msg.MIGRATE_DATA, 105, 106, 113])
def test_ignored_messages_count_in_the_window_as_the_server_counts_them(number: int) -> None:
    conversation = with_window(client_side(MAIN), 1)
    (item,) = deliver(conversation, message(number, b"anything"))
    assert isinstance(item, Ignored)
    assert take_control(conversation) == message(MsgC.ACK)


def test_a_server_does_not_answer_what_only_servers_may_ask() -> None:
    conversation = server_side()
    deliver(conversation, message(MsgC.PONG, bytes(12)) + message(MsgC.ACK))
    assert not conversation.control


# Views


def test_data_comes_as_views_into_the_one_receive_buffer() -> None:
    conversation = client_side()
    buffer = conversation.receive_buffer()
    stream = message(Msg.DATA, b"first") + message(Msg.DATA, b"second")
    buffer[: len(stream)] = stream
    first, second = conversation.receive_data(len(stream))
    assert isinstance(first, memoryview)
    assert isinstance(second, memoryview)
    assert first.obj is second.obj is buffer.obj


def test_views_stay_valid_until_the_buffer_is_asked_for_again_whatever_is_sent() -> None:
    conversation = client_side()
    stream = message(Msg.DATA, b"first") + message(Msg.DATA, b"second") + message(Msg.DATA)[:3]
    conversation.receive_buffer()[: len(stream)] = stream
    views = conversation.receive_data(len(stream))
    conversation.send(MsgC.PORT_EVENT, b"\0")
    conversation.payload_buffer()[:5] = b"hello"
    conversation.data_message(5)
    assert [bytes(view) for view in views if isinstance(view, memoryview)] == [b"first", b"second"]


def test_unfolded_data_outlives_the_buffer() -> None:
    conversation = client_side()
    stream = message(Msg.COMPRESSED_DATA, bytes.fromhex("01 03000000 30616263"))
    conversation.receive_buffer()[: len(stream)] = stream
    (view,) = conversation.receive_data(len(stream))
    deliver(conversation, message(Msg.DATA, bytes(300_000)))
    assert isinstance(view, memoryview)
    assert bytes(view) == b"abc"


def test_empty_data_gives_nothing() -> None:
    assert deliver(client_side(), message(Msg.DATA) * 3) == []


# Both roles against each other


@given(
    st.integers(1, 4),
    st.lists(st.one_of(st.binary(max_size=50), st.just(bytes(SEND_DATA))), max_size=20),
    st.booleans(),
    st.sets(st.integers(1, 2000), max_size=30),
)
@relaxed
def test_client_and_server_understand_each_other(
    window: int, chunks: list[bytes], mini: bool, cuts: set[int]
) -> None:
    client = client_side(USBREDIR, mini_header=mini)
    server = server_side(USBREDIR, mini_header=mini)
    to_client = say(server, Msg.SET_ACK, struct.pack("<II", 5, window))
    to_client += b"".join(say_data(server, chunk) for chunk in chunks)
    data = b"".join(chunks)
    assert deliver(client, to_client, cuts) == ([data] if data else [])

    to_server = b"".join(say_data(client, chunk) for chunk in chunks)
    items = deliver(server, to_server, cuts)
    acks = [Ack()] * (len(chunks) // window)
    events = [AckSync(5), *acks] if chunks else []
    assert [item for item in items if not isinstance(item, bytes)] == events
    assert b"".join(item for item in items if isinstance(item, bytes)) == data
    client.receive_eof()
    server.receive_eof()


def test_a_message_of_ours_goes_behind_the_answers_that_wait() -> None:
    client, server = client_side(), server_side()
    deliver(client, say(server, Msg.PING, bytes(12)))
    said = say(client, MsgC.PORT_EVENT, b"\1")
    assert said == message(MsgC.PONG, bytes(12)) + message(MsgC.PORT_EVENT, b"\1")
    items = deliver(server, said)
    assert isinstance(items[-1], PortEvent)


@pytest.mark.parametrize(("mini", "header"), [(True, 6), (False, 18)])
def test_data_of_ours_is_written_in_place_behind_its_header(mini: bool, header: int) -> None:
    conversation = client_side(mini_header=mini)
    buffer = conversation.payload_buffer()
    assert len(buffer) == SEND_DATA
    buffer[:] = b"x" * SEND_DATA
    whole = conversation.data_message(SEND_DATA)
    assert len(whole) == header + SEND_DATA
    assert whole.obj is buffer.obj
    assert deliver(server_side(mini_header=mini), bytes(whole)) == [b"x" * SEND_DATA]


@given(st.binary(min_size=1, max_size=MAX_STORED), st.booleans(), st.sets(st.integers(1, 4000)))
@relaxed
def test_a_little_may_go_as_an_lz4_block_that_is_none_the_smaller(
    data: bytes, mini: bool, cuts: set[int]
) -> None:
    conversation = client_side(mini_header=mini)
    conversation.payload_buffer()[: len(data)] = data
    whole = conversation.stored_message(len(data))
    assert whole.obj is conversation.payload_buffer().obj
    assert len(whole) <= len(data) + (6 if mini else 18) + 5 + 1 + len(data) // 255 + 1
    assert deliver(server_side(mini_header=mini), bytes(whole), cuts) == [data]


@pytest.mark.parametrize("size", [1, 14, 15, 16, 269, 270, 271, 524, 525, 526, MAX_STORED])
def test_any_decoder_reads_such_a_block(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    head = stored_head(size)
    assert struct.unpack_from("<BI", head) == (1, size)
    assert lz4.block.decompress(head[5:] + data, uncompressed_size=size) == data
