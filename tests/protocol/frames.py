"""Frames of many streams, put together by hand, and what a mux makes of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, TypeVar

from spicebridge.protocol.mux import Mux, MuxStream
from tests.protocol.wire import pieces

HEADER: Final = 10

T = TypeVar("T")

Given = list[tuple[MuxStream, bytes | None]]
"""What a mux gives, data copied and joined as far as nothing of another stream came between."""


def frame(client_id: int, data: bytes = b"") -> bytes:
    """One frame; without data it ends the stream."""
    return struct.pack("<qH", client_id, len(data)) + data


def mux(*, accepts: bool = True) -> Mux[MuxStream]:
    """A mux of streams with nothing to them."""
    return Mux(MuxStream, accepts=accepts)


def feed(side: Mux[MuxStream], data: bytes, now: float = 0.0, cuts: Iterable[int] = ()) -> Given:
    """Lets a mux receive `data` in pieces."""
    given: Given = []
    for piece in pieces(data, cuts):
        for stream, view in side.receive_data(memoryview(piece), now):
            append(given, stream, None if view is None else bytes(view))
    return given


def append(given: list[tuple[T, bytes | None]], stream: T, data: bytes | None) -> None:
    """Adds what was given; data behind data of the same stream is joined."""
    if data is not None and given and given[-1][0] == stream:
        last = given[-1][1]
        if last is not None:
            given[-1] = (stream, last + data)
            return
    given.append((stream, data))
