"""WebSocket frames: wsproto reads what we write and writes what we read, cut anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping
from wsproto.frame_protocol import FrameProtocol, ParseFailed
from wsproto.frame_protocol import Opcode as TheirOpcode

from spicebridge.transport.websocket_frames import (
    Close,
    FrameError,
    FrameReader,
    Opcode,
    Status,
    close_frame,
    masked_frame,
)
from tests.transport.fake_proxy import cut
from tests.transport.websocket_tools import (
    BINARY,
    CLOSE,
    FIN,
    PING,
    PONG,
    TEXT,
    binary,
    frame,
)

SIZES = [0, 1, 3, 4, 5, 125, 126, 65_535, 65_536, 262_144]
"""On both sides of each bound of a length (RFC 6455, 5.2), and of the mask's."""

cuts = st.lists(st.integers(0, 1 << 20), max_size=6)
rooms = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def read(
    pieces: Iterable[bytes], rooms: Sequence[int] = (1 << 20,)
) -> tuple[bytes, FrameReader, FrameError | None]:
    """What comes out of a reader, to its end or the end of the pieces, and its error."""
    reader = FrameReader()
    room = itertools.cycle(rooms)
    out = bytearray()
    error = None
    for piece in pieces:
        data = bytearray(piece)
        reader.feed(memoryview(data))
        buffer = bytearray(next(room))
        try:
            while count := reader.take(memoryview(buffer)):
                out += buffer[:count]
                buffer = bytearray(next(room))
        except FrameError as caught:
            error = caught
            break
        data[:] = bytes(len(data))  # nothing of it is needed any more
    return bytes(out), reader, error


# Writing


@pytest.mark.parametrize("size", SIZES)
def test_wsproto_reads_our_frames(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    server = Connection(ConnectionType.SERVER)
    server.receive_data(masked_frame(Opcode.BINARY, memoryview(payload)))
    [event] = server.events()
    assert isinstance(event, BytesMessage)
    assert event.data == payload
    assert event.message_finished


def test_each_frame_has_a_key_of_its_own() -> None:
    """What it cannot be foreseen for: that nobody chooses what goes over the wire (5.3)."""
    keys = {masked_frame(Opcode.BINARY, bytes(4))[2:6] for _ in range(50)}
    assert len(keys) > 45


@pytest.mark.parametrize(("code", "heard"), [(1000, 1000), (1002, 1002), (Status.NONE, 1005)])
def test_wsproto_reads_our_close(code: int, heard: int) -> None:
    server = Connection(ConnectionType.SERVER)
    server.receive_data(close_frame(code))
    [event] = server.events()
    assert isinstance(event, CloseConnection)
    assert event.code == heard


# Reading


@pytest.mark.parametrize("size", SIZES)
def test_messages_of_any_size_are_one_stream(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    server = Connection(ConnectionType.SERVER)
    data = server.send(BytesMessage(data=payload)) + server.send(BytesMessage(data=b"next"))
    assert read([data])[0] == payload + b"next"
    assert read(cut(data, range(300)), [7, 100_000])[0] == payload + b"next"


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes, list[bytes]]:
    """Binary messages in pieces, pings and pongs between them; the bytes, data, and pings."""
    server = Connection(ConnectionType.SERVER)
    raw = bytearray()
    data = bytearray()
    pings = []
    for _ in range(draw(st.integers(0, 5))):
        fragments = draw(st.lists(st.binary(max_size=200), min_size=1, max_size=4))
        for number, fragment in enumerate(fragments, 1):
            finished = number == len(fragments)
            raw += server.send(BytesMessage(data=fragment, message_finished=finished))
            data += fragment
            for payload in draw(st.lists(st.binary(max_size=125), max_size=2)):
                raw += server.send(Ping(payload=payload))
                raw += frame(FIN | PONG, payload[:3])
                pings.append(payload)
    return bytes(raw), bytes(data), pings


@given(messages(), cuts, rooms)
def test_fragments_and_control_frames_come_cut_anywhere(
    said: tuple[bytes, bytes, list[bytes]], places: list[int], rooms: list[int]
) -> None:
    raw, data, pings = said
    out, reader, error = read(cut(raw, places), rooms)
    assert (out, error) == (data, None)
    assert reader.ping == (pings[-1] if pings else None)


@given(messages(), cuts, rooms, st.sampled_from([0, 1000, 1011, 3000]), st.text(max_size=30))
def test_a_close_ends_it_behind_the_data(
    said: tuple[bytes, bytes, list[bytes]],
    places: list[int],
    rooms: list[int],
    code: int,
    reason: str,
) -> None:
    raw, data, _ = said
    payload = code.to_bytes(2, "big") + reason.encode() if code else b""
    raw += frame(FIN | CLOSE, payload) + binary(b"what is behind it means nothing")
    out, reader, error = read(cut(raw, places), rooms)
    assert (out, error) == (data, None)
    assert reader.close == (Close(code, reason) if code else Close(Status.NONE))
    assert reader.ping is None
    assert reader.take(memoryview(bytearray(1))) == 0


@pytest.mark.parametrize(
    ("bad", "problem", "status"),
    [
        (frame(0x40 | FIN | BINARY), "reserved bits", 1002),
        (frame(0x10 | FIN | PING), "reserved bits", 1002),
        (frame(FIN | BINARY, b"x", key=b"1234"), "masked", 1002),
        (frame(FIN | PING, key=b"1234"), "masked", 1002),
        (frame(FIN | TEXT, b"x"), "text message", 1003),
        (frame(TEXT, b"x"), "text message", 1003),
        (frame(FIN | 3), "unknown opcode 3", 1002),
        (frame(FIN | 11), "unknown opcode 11", 1002),
        (frame(PING), "in pieces", 1002),
        (frame(FIN | PONG, bytes(126)), "125 bytes", 1002),
        (frame(FIN | 0), "out of order", 1002),
        (frame(BINARY) + frame(FIN | BINARY), "out of order", 1002),
        (frame(FIN | BINARY, bytes(125), length_bytes=2), "its length as 125 in 2 bytes", 1002),
        (frame(FIN | BINARY, bytes(65_535), length_bytes=8), "as 65535 in 8 bytes", 1002),
        (b"\x82\x7f" + (1 << 63).to_bytes(8, "big"), "as 9223372036854775808 in 8", 1002),
        (b"\x82\x7f" + b"\xff" * 8, "in 8 bytes", 1002),
        (frame(FIN | CLOSE, b"\3"), r"without a valid status code \(3\)", 1002),
        (frame(FIN | CLOSE, (999).to_bytes(2, "big")), r"\(999\)", 1002),
        (frame(FIN | CLOSE, (1005).to_bytes(2, "big")), r"\(1005\)", 1002),
        (frame(FIN | CLOSE, (5000).to_bytes(2, "big")), r"\(5000\)", 1002),
        (frame(FIN | CLOSE, b"\3\xe8\xff"), "no UTF-8", 1007),
    ],
)
def test_what_breaks_the_protocol_is_told_behind_the_data_and_again(
    bad: bytes, problem: str, status: int
) -> None:
    for pieces in ([binary(b"data") + bad], [binary(b"data"), *cut(bad, range(len(bad)))]):
        out, reader, error = read(pieces)
        assert out == b"data"
        assert error is not None
        assert error.status == status
        with pytest.raises(FrameError, match=problem):
            reader.take(memoryview(bytearray(1)))


def test_a_frame_of_any_size_is_only_counted() -> None:
    largest = (1 << 63) - 1
    reader = FrameReader()
    reader.feed(memoryview(b"\x82\x7f" + largest.to_bytes(8, "big") + b"data"))
    buffer = bytearray(100)
    assert reader.take(memoryview(buffer)) == 4
    assert buffer[:4] == b"data"
    assert reader._left == largest - 4


frames = st.builds(
    frame,
    st.sampled_from([BINARY, FIN | BINARY, 0, FIN, FIN | PING, FIN | PONG, FIN | CLOSE])
    | st.integers(0, 255),
    st.binary(max_size=130) | st.just(bytes(1 << 16)) | st.sampled_from([b"\3\xe8", b"\3\xed"]),
    key=st.just(b"") | st.sampled_from([b"", b"1234"]),
)


@given(st.lists(frames, max_size=8), cuts, rooms)
def test_garbage_means_to_us_what_it_means_to_wsproto(
    said: list[bytes], places: list[int], rooms: list[int]
) -> None:
    theirs = FrameProtocol(client=True, extensions=[])
    theirs.receive_bytes(b"".join(said))
    expected = bytearray()
    closed = failed = False
    try:
        for each in theirs.received_frames():
            closed = each.opcode is TheirOpcode.CLOSE
            if each.opcode is TheirOpcode.TEXT:  # which it knows, and SPICE does not
                raise ParseFailed("text")
            if each.opcode is TheirOpcode.BINARY and isinstance(each.payload, bytes):
                expected += each.payload
    except ParseFailed:
        failed = True
    out, reader, error = read(cut(b"".join(said), places), [*rooms, 20_000])
    assert out == expected
    assert (error is not None) == failed
    assert (reader.close is not None) == closed
