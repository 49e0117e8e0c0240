"""Frames come out of a mux as they went in, however they are cut, from either side."""

from __future__ import annotations

from collections import deque
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spicebridge.protocol.mux import (
    MAX_MUX_DATA,
    MUX_HEADER,
    Mux,
    MuxDecoder,
    MuxStream,
    pack_mux_header,
)
from tests.protocol.frames import HEADER, append, frame
from tests.protocol.wire import pieces

Said = list[tuple[int, bytes]]
"""Frames: client id and data, none of it for size 0."""

EXTREMES: Final = [0, 1, -1, 2**31, -(2**31), 2**32, 2**63 - 1, -(2**63)]

ids = st.one_of(st.sampled_from(EXTREMES), st.integers(-(2**63), 2**63 - 1))
small = st.binary(max_size=40)
large = st.builds(
    lambda size, seed: (bytes(range(seed, 256)) * (size // (256 - seed) + 1))[:size],
    st.sampled_from([1, 2, 255, 256, 4096, 65_534, 65_535]),
    st.integers(0, 255),
)
short_frames = st.lists(st.tuples(ids, small), max_size=10)
frames = st.lists(st.tuples(ids, st.one_of(small, small, large)), max_size=10)
cuts = st.sets(st.integers(1, 200_000) | st.integers(1, 300), max_size=20)

relaxed = settings(max_examples=60)


def encoded(said: Said) -> bytes:
    """Their bytes, written as the bridge writes them."""
    stream = bytearray()
    for client_id, data in said:
        place = len(stream)
        stream += bytes(MUX_HEADER)
        pack_mux_header(stream, place, client_id, len(data))
        stream += data
    return bytes(stream)


def joined(items: list[tuple[int, bytes | None]]) -> list[tuple[int, bytes | None]]:
    """What was given; data behind data of the same id is joined."""
    result: list[tuple[int, bytes | None]] = []
    for client_id, data in items:
        append(result, client_id, data)
    return result


def decoded(decoder: MuxDecoder, data: bytes) -> list[tuple[int, bytes | None]]:
    """What a decoder makes of the next bytes, copied."""
    return [
        (client_id, None if view is None else bytes(view))
        for client_id, view in decoder.receive_data(memoryview(data))
    ]


# The decoder


def test_a_frame_is_int64_client_id_uint16_size_and_data() -> None:
    assert encoded([(-2, b"abc")]) == bytes.fromhex("feffffffffffffff 0300 616263")
    assert encoded([(0x0102030405060708, b"")]) == bytes.fromhex("0807060504030201 0000")


def test_a_header_is_written_in_place() -> None:
    buffer = bytearray(b"x" * 14)
    pack_mux_header(memoryview(buffer), 2, 1, MAX_MUX_DATA)
    assert buffer == b"xx" + bytes.fromhex("0100000000000000 ffff") + b"xx"


@given(frames, cuts)
@relaxed
def test_frames_cut_anywhere_come_out_as_they_went_in(said: Said, cuts: set[int]) -> None:
    stream = encoded(said)
    decoder = MuxDecoder()
    items = [item for piece in pieces(stream, cuts) for item in decoded(decoder, piece)]
    assert joined(items) == joined([(client_id, data or None) for client_id, data in said])
    assert all(data != b"" for _, data in items)
    assert decoder.position == len(stream)
    assert decoder.missing == 0


@given(short_frames)
@relaxed
def test_frames_byte_by_byte_come_out_as_they_went_in(said: Said) -> None:
    stream = encoded(said)
    decoder = MuxDecoder()
    items = [
        item for piece in pieces(stream, range(len(stream))) for item in decoded(decoder, piece)
    ]
    assert joined(items) == joined([(client_id, data or None) for client_id, data in said])


@given(short_frames)
@relaxed
def test_what_is_missing_of_a_frame_is_known_at_every_byte(said: Said) -> None:
    decoder = MuxDecoder()
    for client_id, data in said:
        stream = frame(client_id, data)
        for place, byte in enumerate(stream):
            assert decoder.missing == (
                0 if not place else HEADER - place if place < HEADER else len(stream) - place
            )
            assert decoder.within == (place > HEADER)
            decoder.receive_data(memoryview(bytes((byte,))))
    assert decoder.missing == 0
    assert not decoder.within


def test_nothing_received_gives_nothing() -> None:
    decoder = MuxDecoder()
    assert decoder.receive_data(memoryview(b"")) == []
    decoder.receive_data(memoryview(frame(1, b"abc")[:12]))
    assert decoder.receive_data(memoryview(b"")) == []
    assert decoder.missing == 1


@given(frames, cuts)
@relaxed
def test_data_are_views_of_what_was_received(said: Said, cuts: set[int]) -> None:
    decoder = MuxDecoder()
    for piece in pieces(encoded(said), cuts):
        buffer = bytearray(piece)
        for _, view in decoder.receive_data(memoryview(buffer)):
            assert view is None or view.obj is buffer


@given(short_frames, st.integers(0, 500), short_frames)
@relaxed
def test_after_a_reset_nothing_is_left_of_a_cut_frame(before: Said, cut: int, after: Said) -> None:
    decoder = MuxDecoder()
    decoder.receive_data(memoryview(encoded(before)[:cut]))
    decoder.reset()
    assert decoder.position == decoder.missing == 0
    assert not decoder.within
    items = decoded(decoder, encoded(after))
    assert items == [(client_id, data or None) for client_id, data in after]


# Both sides against each other


class Side:
    """One end of a mux on an imaginary wire.

    Attributes:
        mux: of this end.
        streams: every stream there ever was, in the order of their beginning.
        sent: bytes sent per stream.
        received: bytes received per stream.
        over: streams whose end was received.
        wire: bytes on their way to this end.
    """

    def __init__(self, *, accepts: bool) -> None:
        self.mux = Mux(self._begin, accepts=accepts)
        self.streams: list[MuxStream] = []
        self.sent: dict[MuxStream, bytes] = {}
        self.received: dict[MuxStream, bytes] = {}
        self.over: set[MuxStream] = set()
        self.wire: deque[bytes] = deque()

    def _begin(self, client_id: int) -> MuxStream:
        stream = MuxStream(client_id)
        self.streams.append(stream)
        self.sent[stream] = self.received[stream] = b""
        return stream

    def take(self, count: int) -> None:
        """Receives the next `count` bytes of the wire."""
        rest = b"".join(self.wire)
        self.wire.clear()
        self.wire.append(rest[count:])
        for stream, view in self.mux.receive_data(memoryview(rest[:count]), 0.0):
            assert stream.peer_ended or view is not None
            assert stream not in self.over
            if view is None:
                self.over.add(stream)
            self.received[stream] += b"" if view is None else view

    def say(self, peer: Side, number: int, data: bytes) -> None:
        """Sends data of a stream that may still send."""
        if speaking := [stream for stream in self.streams if not stream.ended]:
            stream = speaking[number % len(speaking)]
            peer.wire.append(frame(stream.id, data))
            self.sent[stream] += data

    def end(self, peer: Side, number: int) -> None:
        """Ends this direction of a stream."""
        if self.streams:
            stream = self.streams[number % len(self.streams)]
            if self.mux.end(stream):
                peer.wire.append(frame(stream.id))


steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "say", "say", "say", "end", "take", "take"]),
        st.booleans(),
        st.integers(0, 50),
        st.binary(min_size=1, max_size=60),
    ),
    max_size=80,
)


@given(steps)
@settings(max_examples=150)
def test_two_muxes_carry_every_stream_both_ways_until_each_has_ended_it(
    steps: list[tuple[str, bool, int, bytes]],
) -> None:
    opener, acceptor = Side(accepts=False), Side(accepts=True)
    for what, ours, number, data in steps:
        side, peer = (opener, acceptor) if ours else (acceptor, opener)
        match what:
            case "open":
                # an id is known to the other side from its first data on
                stream = opener.mux.open()
                opener.sent[stream] += data
                acceptor.wire.append(frame(stream.id, data))
            case "say":
                side.say(peer, number, data)
            case "end":
                side.end(peer, number)
            case _:
                side.take(number)

    for side in (opener, acceptor):
        side.take(1 << 20)
    assert len(opener.streams) == len(acceptor.streams)
    for side, peer in ((opener, acceptor), (acceptor, opener)):
        for number in range(len(side.streams)):
            side.end(peer, number)
    for side in (opener, acceptor):
        side.take(1 << 20)

    for stream, other in zip(opener.streams, acceptor.streams, strict=True):
        assert stream.id == other.id
        assert opener.sent[stream] == acceptor.received[other]
        assert acceptor.sent[other] == opener.received[stream]
        assert stream.ended
        assert stream.peer_ended
        assert other.ended
        assert other.peer_ended
    for side in (opener, acceptor):
        assert side.mux.dropped_frames == side.mux.missing == 0
        assert not side.mux._streams
        assert not side.mux._ended


@pytest.mark.parametrize("accepts", [True, False])
def test_data_given_by_a_mux_are_views_of_what_was_received(accepts: bool) -> None:
    side = Mux(MuxStream, accepts=accepts)
    if not accepts:
        side.open()
    buffer = bytearray(frame(1, b"hello"))
    ((_, view),) = side.receive_data(memoryview(buffer), 0.0)
    assert view is not None
    assert view.obj is buffer
