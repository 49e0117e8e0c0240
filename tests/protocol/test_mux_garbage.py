"""What is no mux is refused before it has opened many streams; what is one never is."""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spicebridge.errors import ProtocolError
from spicebridge.protocol.mux import MAX_MUX_DATA, Mux, MuxStream
from tests.protocol.frames import HEADER, feed, frame, mux

FEW: Final = 40
"""Streams that garbage may open; a guest's browser opens more."""

READS: Final = [50, 1448, 65_536, 3 << 20]
"""Bytes received at once."""

relaxed = settings(max_examples=15)


def pour(side: Mux[MuxStream], data: bytes, read: int) -> None:
    """Lets a mux receive `data`, so much at once, and looks at nothing that comes of it."""
    view = memoryview(data)
    for place in range(0, len(data), read):
        side.receive_data(view[place : place + read], 0.0)


def refused(data: bytes, read: int) -> tuple[ProtocolError, int]:
    """The error that these bytes give, and how many streams they have opened before."""
    side = mux()
    with pytest.raises(ProtocolError) as caught:
        pour(side, data, read)
    error = caught.value
    assert error.message == "mux frame"
    assert 0 <= error.offset < len(data)
    assert "client id" in error.expected
    assert "demux=off" in error.hint
    return error, len(side._streams)


def taken(said: Iterable[tuple[int, bytes]], read: int) -> int:
    """Lets a mux receive frames, none of which it may refuse; how many streams are there then."""
    data = b"".join(frame(client_id, data) for client_id, data in said)
    side = mux()
    pour(side, data, read)
    assert side.missing == 0
    return len(side._streams)


def elf(chance: random.Random) -> bytes:
    """An executable as linkers lay it out: headers, zeros to the page's end, relocations, code,
    strings and symbols."""
    head = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1", 3, 62, 1, 0x1060, 64, 500_000, 0, 64, 56, 9, 64, 30, 29,
    )  # fmt: skip
    program = b"".join(
        struct.pack("<IIQQQQQQ", 1, 5, at, at, at, 0x5F8, 0x5F8, 0x1000)
        for at in range(0, 9 * 0x1000, 0x1000)
    )
    relocations = b"".join(
        struct.pack("<QQQ", at, 8, chance.randrange(1 << 17)) for at in range(0x3000, 0x5000, 8)
    )
    code = chance.randbytes(3 << 20)
    return (head + program).ljust(0x1000, b"\0") + relocations + code + bytes(5000)


# Garbage


@pytest.mark.parametrize("read", READS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=4)
def test_random_bytes_are_refused(read: int, seed: int) -> None:
    error, opened = refused(random.Random(seed).randbytes(3 << 20), read)
    assert opened < FEW
    assert "random" in error.got


@given(st.integers(0, 10_000), st.integers(500, 100_000), st.integers(0, 200))
@relaxed
def test_garbage_is_refused_at_the_same_byte_however_it_is_cut(
    seed: int, read: int, ends: int
) -> None:
    before = frame(5, b"x") + frame(9) * ends
    data = before + random.Random(seed).randbytes(3 << 20)
    error, opened = refused(data, read)
    again, opened_again = refused(data, 1 << 23)
    assert (error.offset, opened) == (again.offset, opened_again)
    assert error.offset >= len(before)


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=11, max_size=200),
    st.integers(1, 300),
)
def test_text_is_refused_at_its_beginning(text: str, read: int) -> None:
    error, opened = refused(text.encode(), read)
    assert opened == 0
    assert error.offset == 0
    assert error.got == f"text, {text[:HEADER]!r}"


@pytest.mark.parametrize("read", [1, 7, 100])
@pytest.mark.parametrize(
    "text",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b'{"execute": "guest-ping"}\n',
        b"\r\nDebian GNU/Linux 12 spice ttyS0\r\n\r\nspice login: ",
    ],
)
def test_what_people_put_on_ports_is_refused(text: bytes, read: int) -> None:
    error, opened = refused(text, read)
    assert opened == 0
    assert error.got.startswith("text")


@pytest.mark.parametrize("read", READS)
def test_zeros_are_refused_without_opening_anything(read: int) -> None:
    error, opened = refused(bytes(100_000), read)
    assert opened == 0
    assert error.got == "zeros"
    assert error.offset == 63 * HEADER


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("seed", range(3))
def test_an_executable_is_refused(read: int, seed: int) -> None:
    _, opened = refused(elf(random.Random(seed)), read)
    assert opened < FEW


def test_a_real_executable_opens_no_hundreds_of_streams() -> None:
    """Where its tables happen to look like frames it may be let in for longer."""
    side = mux()
    with suppress(ProtocolError):
        pour(side, Path(sys.executable).read_bytes(), 4096)
    assert len(side._streams) < 200


def test_after_a_reset_text_is_refused_at_its_beginning_again() -> None:
    side = mux()
    feed(side, frame(1, b"x"))
    side.reset()
    with pytest.raises(ProtocolError) as caught:
        feed(side, b"GET / HTTP/1.1\r\n")
    assert caught.value.offset == 0


# Frames

chances = st.integers(0, 10_000).map(random.Random)
reads = st.sampled_from([100, 1448, 65_536, 3 << 20])


def sizes(chance: random.Random, count: int) -> list[int]:
    """Sizes of first frames, as of a guest that mostly uploads."""
    return [
        chance.choice((chance.randint(1, 600), chance.randint(1, MAX_MUX_DATA)))
        for _ in range(count)
    ]


@given(chances, reads)
@settings(max_examples=10)
def test_pointers_are_taken_for_ids(chance: random.Random, read: int) -> None:
    heap = chance.randrange(0x5500_0000_0000, 0x7FFF_0000_0000)
    places = chance.sample(range(heap, heap + (1 << 33), 16), 200)
    said = zip(places, map(bytes, sizes(chance, 200)), strict=True)
    assert taken(said, read) == 200


@given(chances, reads)
@settings(max_examples=10)
def test_pointers_cut_to_32_bits_and_extended_are_taken_for_ids(
    chance: random.Random, read: int
) -> None:
    places = chance.sample(range(-(2**31), 2**31, 16), 200)
    said = zip(places, map(bytes, sizes(chance, 200)), strict=True)
    assert taken(said, read) == 200


@pytest.mark.parametrize("start", [0, 1, -200, -(2**63), 2**63 - 200, 2**32 - 100])
@given(chances, reads)
@settings(max_examples=5)
def test_counters_are_taken_for_ids(start: int, chance: random.Random, read: int) -> None:
    said = zip(range(start, start + 200), map(bytes, sizes(chance, 200)), strict=True)
    assert taken(said, read) == 200


@given(chances, reads)
@settings(max_examples=10)
def test_ids_at_random_that_begin_with_requests_are_taken(chance: random.Random, read: int) -> None:
    said = [
        (chance.randint(-(2**63), 2**63 - 1), bytes(chance.randint(1, 2000))) for _ in range(1000)
    ]
    assert taken(said, read) == 1000


@pytest.mark.parametrize("size", [1, 512, 4096, 16_384, MAX_MUX_DATA])
@given(chance=chances, cuts=st.sampled_from([1448, 4096, 65_536, 65_540, 65_545, 262_144]))
@settings(max_examples=5)
def test_a_thousand_ids_at_random_with_equal_first_frames_are_taken(
    size: int, chance: random.Random, cuts: int
) -> None:
    data = bytes(size)
    count = 1000 if size < 10_000 else 100
    said = [(chance.randint(-(2**63), 2**63 - 1), data) for _ in range(count)]
    assert taken(said, cuts) == count


@given(chances, reads)
@settings(max_examples=5)
def test_ids_at_random_that_begin_with_uploads_are_taken_where_they_speak_on(
    chance: random.Random, read: int
) -> None:
    said = []
    for _ in range(100):
        client_id = chance.randint(-(2**63), 2**63 - 1)
        said += [(client_id, bytes(chance.randint(5000, 20_000))) for _ in range(5)]
    assert taken(said, read) == 100


@given(chances, reads)
@settings(max_examples=5)
def test_connections_that_say_nothing_are_taken(chance: random.Random, read: int) -> None:
    said = [(chance.randint(1, 2**63 - 1), b"") for _ in range(10_000)]
    assert taken(said, read) == 0


@given(st.sets(st.integers(1, 2000), max_size=30))
def test_http_in_frames_is_taken_however_it_is_cut(cuts: set[int]) -> None:
    request = b"PROPFIND / HTTP/1.1\r\nHost: localhost:9843\r\nDepth: 1\r\n\r\n"
    data = b"".join(frame(0x5581_2345_6780 + 64 * number, request) for number in range(20))
    given = feed(mux(), data, cuts=cuts)
    assert [said for _, said in given] == [request] * 20


@pytest.mark.parametrize("first", [1, 200, MAX_MUX_DATA])
@pytest.mark.parametrize("second", [1, 200, MAX_MUX_DATA])
def test_a_read_may_end_anywhere_in_the_next_header(first: int, second: int) -> None:
    """The next frame's size has nothing to do with that of the one before."""
    said = frame(1, b"a" * first) + frame(2, b"b" * second)
    for cut in range(HEADER + first - 1, 2 * HEADER + first + 2):
        (_, one), (_, two) = feed(mux(), said, cuts=[cut])
        assert (one, two) == (b"a" * first, b"b" * second)
