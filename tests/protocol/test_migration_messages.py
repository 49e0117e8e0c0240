"""What servers say of live migration: where a machine moves to, and the state of its channels."""

from __future__ import annotations

import struct
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spicebridge.errors import ProtocolError
from spicebridge.protocol.constants import (
    MAX_CERT_SUBJECT,
    MAX_HOST_NAME,
    MAX_MIGRATE_DATA,
    MigrateFlags,
    MigrationMsg,
    Msg,
    MsgC,
)
from spicebridge.protocol.conversation import Conversation
from spicebridge.protocol.events import (
    Ignored,
    Migrate,
    MigrateBegin,
    MigrateCancel,
    MigrateData,
    MigrateEnd,
    MigrateSwitchHost,
    MigrationTarget,
    PortEvent,
    PortInit,
    SeamlessAck,
)
from spicebridge.protocol.messages import encode_port_init, encode_version
from tests.protocol.sequences import migration_targets, u32
from tests.protocol.wire import (
    MAIN,
    PORT,
    Item,
    client_side,
    deliver,
    encode_begin,
    encode_target,
    header,
    message,
    refused,
    server_side,
    take_control,
)

NUMBERS: Final = [MigrationMsg.BEGIN, MigrationMsg.BEGIN_SEAMLESS, MigrationMsg.SWITCH_HOST]
WITH_STATE: Final = message(Msg.MIGRATE, struct.pack("<I", 3))


def from_server(number: int, payload: bytes) -> list[Item]:
    """What a client makes of one message on the main channel."""
    return deliver(client_side(MAIN), message(number, payload))


def fixed_of(number: int) -> int:
    """Bytes before the strings."""
    return 24 if number == MigrationMsg.BEGIN_SEAMLESS else 20


def target_of(item: Item) -> MigrationTarget:
    """Where the machine moves to."""
    assert isinstance(item, MigrateBegin | MigrateSwitchHost)
    return item.target


# Where to


def test_the_very_bytes_of_qemu_seamless() -> None:
    payload = bytes.fromhex("83a4ffff 0a000000 18000000 00000000 00000000 01000000")
    (item,) = from_server(116, payload + b"127.0.0.1\0")
    assert item == MigrateBegin(MigrationTarget("127.0.0.1", 0xA483, None, ""), 1)


def test_the_very_bytes_of_qemu_semi_seamless() -> None:
    payload = bytes.fromhex("ada8ffff 0a000000 14000000 00000000 00000000")
    (item,) = from_server(101, payload + b"127.0.0.1\0")
    assert item == MigrateBegin(MigrationTarget("127.0.0.1", 0xA8AD, None, ""), None)


@given(migration_targets)
def test_begin(target: MigrationTarget) -> None:
    assert from_server(101, encode_target(target)) == [MigrateBegin(target)]


@given(migration_targets, u32)
def test_begin_seamless(target: MigrationTarget, version: int) -> None:
    begin = MigrateBegin(target, version)
    assert from_server(116, encode_begin(begin)) == [begin]


@given(migration_targets)
def test_switch_host(target: MigrationTarget) -> None:
    assert from_server(111, encode_target(target)) == [MigrateSwitchHost(target)]


@pytest.mark.parametrize("none", [0, 0xFFFF])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_port_that_is_not_there(number: int, none: int) -> None:
    target = MigrationTarget("h", None, None, "")
    more = bytes(fixed_of(number) - 20)
    (item,) = from_server(number, encode_target(target, more, none))
    assert target_of(item) == target


@pytest.mark.parametrize("number", NUMBERS)
def test_strings_may_stand_anywhere_behind_the_fixed_part(number: int) -> None:
    fixed = fixed_of(number)
    payload = (
        struct.pack("<HHIIII", 1, 2, 2, fixed + 5, 4, fixed).ljust(fixed, b"\0") + b"CN=\0_h\0"
    )
    (item,) = from_server(number, payload)
    assert target_of(item) == MigrationTarget("h", 1, 2, "CN=")


@pytest.mark.parametrize("number", NUMBERS)
def test_names_of_the_limit_are_taken(number: int) -> None:
    target = MigrationTarget("h" * (MAX_HOST_NAME - 1), 1, 2, "s" * (MAX_CERT_SUBJECT - 1))
    payload = encode_target(target, bytes(fixed_of(number) - 20))
    assert target_of(from_server(number, payload)[0]) == target


def test_what_stands_behind_a_nul_is_no_part_of_a_name() -> None:
    payload = struct.pack("<HHIIII", 1, 2, 9, 20, 0, 0) + b"host\0evil"
    assert target_of(from_server(101, payload)[0]).host == "host"


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("size", "offset", "subject_size", "subject_offset", "at", "expected"),
    [
        (0, 20, 0, 0, 4, "the name of a host"),
        (MAX_HOST_NAME + 1, 20, 0, 0, 4, "a string of at most 1024 bytes"),
        (2**32 - 1, 20, 0, 0, 4, "a string of at most 1024 bytes"),
        (10, 19, 0, 0, 8, "10 bytes of a string within"),
        (10, 0, 0, 0, 8, "10 bytes of a string within"),
        (10, 41, 0, 0, 8, "10 bytes of a string within"),
        (10, 2**32 - 5, 0, 0, 8, "10 bytes of a string within"),
        (4, 30, MAX_CERT_SUBJECT + 1, 24, 12, "a string of at most 4096 bytes"),
        (4, 30, 5, 19, 16, "5 bytes of a string within"),
        (4, 30, 5, 46, 16, "5 bytes of a string within"),
    ],
)
def test_bad_sizes_and_offsets_are_told_by_their_place(
    number: int,
    size: int,
    offset: int,
    subject_size: int,
    subject_offset: int,
    at: int,
    expected: str,
) -> None:
    payload = struct.pack("<HHIIII", 1, 2, size, offset, subject_size, subject_offset)
    error = refused(client_side(MAIN), message(number, payload + b"abcd" * 7 + b"\0\0"))
    assert error.message.startswith("MAIN_MIGRATE_")
    assert error.offset == 6 + at
    assert expected in error.expected


def test_a_name_of_nothing_but_its_nul_is_none() -> None:
    payload = struct.pack("<HHIIII", 1, 2, 1, 20, 0, 0) + b"\0"
    assert refused(client_side(MAIN), message(101, payload)).expected == "the name of a host"


@pytest.mark.parametrize(
    ("number", "size"),
    [(101, 19), (101, 5141), (116, 23), (116, 5145), (111, 19), (111, 5141)]
    + [(number, 1) for number in (102, 112, 117, 118)],
)
def test_a_body_of_a_wrong_size_is_refused_by_its_header(number: int, size: int) -> None:
    error = refused(client_side(MAIN), header(number, size))
    assert (error.message, error.offset) == ("MAIN_" + _name(number), 2)


def _name(number: int) -> str:
    return f"MIGRATE_{MigrationMsg(number).name}"


@given(st.sampled_from(NUMBERS), st.binary(max_size=80))
@settings(max_examples=200)
def test_any_body_is_a_target_or_a_protocol_error(number: int, payload: bytes) -> None:
    try:
        (item,) = from_server(number, payload)
    except ProtocolError as error:
        assert error.message == "MAIN_" + _name(number)  # noqa: PT017 - or it raises nothing
    else:
        assert 0 < len(target_of(item).host.encode(errors="replace")) <= 3 * len(payload)


@given(
    st.sampled_from(NUMBERS),
    st.tuples(*[st.integers(0, 90) for _ in range(4)]),
    st.binary(min_size=40, max_size=80),
)
@settings(max_examples=200)
def test_what_is_taken_for_a_name_is_in_the_body(
    number: int, numbers: tuple[int, int, int, int], rest: bytes
) -> None:
    payload = struct.pack("<HHIIII", 1, 2, *numbers) + rest
    size, offset, subject_size, subject_offset = numbers
    try:
        (item,) = from_server(number, payload)
    except ProtocolError:
        return
    target = target_of(item)
    named = payload[offset : offset + size].partition(b"\0")[0]
    subject = payload[subject_offset : subject_offset + subject_size].partition(b"\0")[0]
    assert target.host == named.decode(errors="replace")
    assert target.cert_subject == subject.decode(errors="replace")


@pytest.mark.parametrize(
    ("number", "event"),
    [
        (102, MigrateCancel()),
        (112, MigrateEnd()),
        (117, SeamlessAck(agreed=True)),
        (118, SeamlessAck(agreed=False)),
    ],
)
def test_messages_without_a_body(number: int, event: Item) -> None:
    assert from_server(number, b"") == [event]


@pytest.mark.parametrize("number", [111, 112, 116, 117, 118])
def test_other_channels_have_none_of_them(number: int) -> None:
    assert refused(client_side(PORT), header(number, 0)).message == "data header"


def test_a_version_has_4_bytes() -> None:
    assert encode_version(0x01020304) == b"\4\3\2\1"


# The state of a channel


@pytest.mark.parametrize("channel_type", [PORT, MAIN])
@pytest.mark.parametrize("size", [0, 1, 33, 5_000_000])
def test_a_state_is_passed_on_as_it_comes(channel_type: int, size: int) -> None:
    conversation = client_side(channel_type)
    state = (bytes(range(251)) * (size // 251 + 1))[:size]
    items = deliver(
        conversation, WITH_STATE + message(Msg.MIGRATE_DATA, state), range(1, size, 777)
    )
    assert items[:2] == [
        Migrate(MigrateFlags.NEED_FLUSH | MigrateFlags.NEED_DATA_TRANSFER),
        MigrateData(size),
    ]
    assert b"".join(item for item in items if isinstance(item, bytes)) == state
    assert conversation.data_left == 0
    assert conversation.moves == MigrateFlags(3)


def test_its_size_is_told_before_its_bytes_have_come() -> None:
    conversation = client_side()
    items = deliver(conversation, WITH_STATE + message(Msg.MIGRATE_DATA, bytes(100))[:7])
    assert items[1:] == [MigrateData(100), b"\0"]
    assert conversation.data_left == 99
    with pytest.raises(ProtocolError, match="expected 99 bytes"):
        conversation.receive_eof()


def test_a_state_may_be_larger_than_any_message_but_is_bounded() -> None:
    conversation = client_side()
    deliver(conversation, WITH_STATE + header(Msg.MIGRATE_DATA, MAX_MIGRATE_DATA))
    assert conversation.data_left == MAX_MIGRATE_DATA
    conversation = client_side()
    error = refused(conversation, WITH_STATE + header(Msg.MIGRATE_DATA, MAX_MIGRATE_DATA + 1))
    assert (error.message, error.offset) == ("MIGRATE_DATA", len(WITH_STATE) + 2)
    assert error.expected == "a size of 0 to 67108864 bytes"


@pytest.mark.parametrize("flags", [0, 1])
def test_a_state_that_was_not_announced_is_ignored(flags: int) -> None:
    conversation = client_side()
    stream = message(Msg.MIGRATE, struct.pack("<I", flags)) + message(Msg.MIGRATE_DATA, b"state")
    assert deliver(conversation, stream) == [Migrate(MigrateFlags(flags)), Ignored("MIGRATE_DATA")]


def test_only_one_state_comes() -> None:
    conversation = client_side()
    items = deliver(conversation, WITH_STATE + message(Msg.MIGRATE_DATA, b"state") * 2)
    assert items[1:] == [MigrateData(5), b"state", Ignored("MIGRATE_DATA")]


@pytest.mark.parametrize("mini", [True, False], ids=["mini", "full"])
def test_our_header_of_a_state_is_that_of_a_message(mini: bool) -> None:
    said = client_side(mini_header=mini).state_header(5) + b"state"
    assert deliver(server_side(mini_header=mini), said) == [Ignored("MIGRATE_DATA")]


# Going on


def test_views_live_on_when_they_are_spared() -> None:
    conversation = client_side()
    stream = message(Msg.DATA, b"first") + message(Msg.DATA, b"second")[:-2]
    conversation.receive_buffer()[: len(stream)] = stream
    views = conversation.receive_data(len(stream))
    conversation.spare_views()
    assert deliver(conversation, b"nd" + message(Msg.DATA, bytes(300_000))) == [
        b"nd" + bytes(300_000)
    ]
    assert [bytes(view) for view in views if isinstance(view, memoryview)] == [b"first", b"seco"]


@given(st.integers(0, 60), st.booleans())
def test_sparing_views_loses_no_byte_that_is_not_understood_yet(cut: int, mini: bool) -> None:
    peer, conversation = server_side(mini_header=mini), client_side(mini_header=mini)
    peer.send(Msg.PORT_INIT, encode_port_init(PortInit("a name", opened=True)))
    peer.send(Msg.PORT_EVENT, b"\2")
    stream = take_control(peer)
    items = deliver(conversation, stream[:cut])
    conversation.spare_views()
    items += deliver(conversation, stream[cut:])
    assert [type(item) for item in items] == [PortInit, PortEvent]
    with pytest.raises(ProtocolError) as caught:
        deliver(conversation, header(0xBEEF, 0, mini=mini))
    assert caught.value.offset == len(stream)


def agreed(mini: bool, said: bytes) -> Conversation:
    """A conversation with another server, and what that has said by now."""
    there = client_side(mini_header=mini)
    deliver(there, said)
    return there


@given(st.booleans(), st.booleans(), st.integers(0, 40))
def test_a_channel_goes_on_with_what_the_other_server_agreed_on(
    here_mini: bool, there_mini: bool, cut: int
) -> None:
    here = client_side(mini_header=here_mini)
    peer = server_side(mini_header=there_mini)
    peer.send(Msg.PING, struct.pack("<IQ", 7, 8))
    peer.send(Msg.PORT_EVENT, b"\0")
    stream = take_control(peer)
    there = agreed(there_mini, stream[:cut])
    deliver(here, _migrate(here_mini))
    here.control += b"for the server that it leaves"
    here.move_on(there)
    assert here.moves is None
    deliver(here, stream[cut:])
    heard = deliver(peer, take_control(here))
    assert [getattr(item, "id", None) for item in heard] == [7]
    here.payload_buffer()[:4] = b"data"
    assert deliver(peer, bytes(here.data_message(4))) == [b"data"]
    here.receive_eof()


def _migrate(mini: bool) -> bytes:
    peer = server_side(mini_header=mini)
    peer.send(Msg.MIGRATE, struct.pack("<I", 3))
    return take_control(peer)


def test_what_was_wanted_of_acks_is_what_the_other_server_wants() -> None:
    here = client_side()
    deliver(here, message(Msg.SET_ACK, struct.pack("<II", 1, 1)))
    take_control(here)
    there = client_side()
    deliver(there, message(Msg.SET_ACK, struct.pack("<II", 2, 2)) + message(Msg.DATA))
    here.move_on(there)
    assert take_control(here) == message(MsgC.ACK_SYNC, struct.pack("<I", 2))
    deliver(here, message(Msg.DATA))
    assert take_control(here) == message(MsgC.ACK)


def test_a_state_that_was_announced_is_not_expected_of_the_other_server() -> None:
    here = client_side()
    deliver(here, WITH_STATE)
    here.move_on(client_side())
    assert deliver(here, message(Msg.MIGRATE_DATA, b"x")) == [Ignored("MIGRATE_DATA")]
