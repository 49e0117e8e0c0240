"""Data headers, mini and full: byte for byte what PEERS.md describes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import ProtocolError
from spicebridge.protocol.framing import MAX_HEADER, Framing


def test_a_mini_header_is_u16_type_u32_size() -> None:
    assert Framing(mini_header=True).pack(101, b"abc") == bytes.fromhex("6500 03000000") + b"abc"


def test_a_full_header_is_u64_serial_u16_type_u32_size_u32_sub_list() -> None:
    framing = Framing(mini_header=False)
    assert framing.pack(3, b"") == bytes.fromhex("0100000000000000 0300 00000000 00000000")
    assert framing.pack(0x0102, b"x") == (
        bytes.fromhex("0200000000000000 0201 01000000 00000000") + b"x"
    )


@given(st.booleans(), st.integers(0, 0xFFFF), st.binary(max_size=100), st.integers(0, 20))
def test_what_one_framing_packs_another_unpacks(
    mini: bool, number: int, payload: bytes, offset: int
) -> None:
    packed = Framing(mini_header=mini).pack(number, payload)
    buffer = memoryview(bytes(offset) + packed)
    framing = Framing(mini_header=mini)
    assert framing.unpack_from(buffer, offset, 0) == (number, len(payload))
    assert len(packed) == framing.size + len(payload)
    assert framing.size <= MAX_HEADER


@pytest.mark.parametrize(("mini", "size"), [(True, 6), (False, 18)])
def test_a_header_has_6_or_18_bytes(mini: bool, size: int) -> None:
    assert Framing(mini_header=mini).size == size


def test_serials_count_our_messages_from_one() -> None:
    framing = Framing(mini_header=False)
    serials = [int.from_bytes(framing.pack(1, b"")[:8], "little") for _ in range(3)]
    assert serials == [1, 2, 3]


def test_sub_messages_are_refused_at_their_place() -> None:
    header = bytes.fromhex("0100000000000000 0300 00000000 05000000")
    with pytest.raises(ProtocolError) as caught:
        Framing(mini_header=False).unpack_from(memoryview(header), 0, 1000)
    error = caught.value
    assert (error.message, error.offset) == ("data header", 1014)
    assert (error.expected, error.got) == ("no sub-messages", "5")
