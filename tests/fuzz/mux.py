"""Frames of many streams on one channel, heard by who accepts streams and by who opens them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from spicebridge.errors import ProtocolError
from spicebridge.protocol.mux import (
    FORGET_AFTER,
    MUX_HEADER,
    Mux,
    MuxDecoder,
    MuxStream,
    pack_mux_header,
)
from tests.fuzz.script import Parser, Script, cut, told

_IDS: Final = (1, 2, 3, 0, -1, 1 << 40, (1 << 40) + 64, -(1 << 63))

Given = list[tuple[int, bytes | None]]
"""What streams were given, by their ids or in the order of their beginning; None for an end."""


def decoder(script: Script) -> bool:
    """Frames are taken apart, by whatever they are cut."""
    cuts, stream = script.number(), script.rest()
    taken = MuxDecoder()
    given: Given = []
    for piece in cut(stream, cuts):
        for client_id, view in taken.receive_data(memoryview(piece)):
            _append(given, client_id, None if view is None else bytes(view))
    expected: Given = []
    at = 0
    while at + MUX_HEADER <= len(stream):
        client_id, size = struct.unpack_from("<qH", stream, at)
        at += MUX_HEADER
        if size == 0:
            expected.append((client_id, None))
        elif data := stream[at : at + size]:
            _append(expected, client_id, data)
        at += size
    assert given == expected
    ended = at == len(stream)
    assert (taken.missing == 0) == ended
    assert taken.position == len(stream)
    return ended


def streams(script: Script) -> bool:
    """A side hears a stream at once and in pieces."""
    (accepts,), cuts, stream = script.flags(1), script.number(), script.rest()
    whole, refused = _hear(accepts, [stream])
    assert _hear(accepts, cut(stream, cuts)) == (whole, refused)
    return not refused


def _hear(accepts: bool, pieces: Iterable[bytes]) -> tuple[Given, str]:
    side = Mux(MuxStream, accepts=accepts)
    order: dict[MuxStream, int] = {}
    given: Given = []
    try:
        for piece in pieces:
            for stream, view in side.receive_data(memoryview(piece), 0.0):
                place = order.setdefault(stream, len(order))
                _append(given, place, None if view is None else bytes(view))
    except ProtocolError as error:  # how much was given before depends on the pieces
        return [], told(error)
    return given, ""


def lives(script: Script) -> bool:
    """Streams begin, speak, end and are abandoned; no byte of theirs is lost without a count."""
    (accepts,) = script.flags(1)
    side = Mux(MuxStream, accepts=accepts)
    known: list[MuxStream] = []
    now = 0.0
    spoken = heard = 0
    while script.more:
        action, which = divmod(script.number(), 32)
        if action < 5:  # most of what happens
            data = script.take(script.number())
            frame = bytearray(MUX_HEADER)
            pack_mux_header(frame, 0, _IDS[which % len(_IDS)], len(data))
            spoken += len(data)
            for piece in cut(bytes(frame) + data, which):
                for stream, view in side.receive_data(memoryview(piece), now):
                    known += [] if stream in known else [stream]
                    heard += len(view or b"")
        elif action == 5:
            known += [] if accepts else [side.open()]
        elif known and action == 6:
            stream = known[which % len(known)]
            side.end(stream)
            if which >= 16:
                side.abandon(stream)
        elif which == 31:
            side.reset()
        else:
            now += FORGET_AFTER * which / 16
        assert heard + side.dropped == spoken
        assert not side.missing
    return True


def _append(given: Given, who: int, data: bytes | None) -> None:
    if data is not None and given and given[-1][0] == who and given[-1][1] is not None:
        given[-1] = who, given[-1][1] + data
    else:
        given.append((who, data))


PARSERS: Final[Sequence[Parser]] = (decoder, streams, lives)
