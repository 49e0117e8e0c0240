"""How long a guest is given for what it was sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.channel import untaken as untaken_module
from spicebridge.channel.untaken import PACE, TOKENS, Untaken
from spicebridge.protocol.constants import SEND_DATA

MIB = 1 << 20
FIRST = 64 * 1024
UNKNOWN = 12 * MIB  # at the start: 4 in kernels, 128 DATA of 64 KiB


class Clock:
    """A clock that stands still between two steps."""

    def __init__(self) -> None:
        self.now = 5000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(untaken_module, "time", clock)
    return clock


def send(untaken: Untaken, clock: Clock, size: int, seconds: float) -> None:
    """Sends `size` bytes at an even pace, in DATA as large as there is room for."""
    began, end = clock.now, clock.now + seconds
    left = size
    while left:
        count = min(left, untaken.room)
        untaken.sent(count)
        left -= count
        clock.now = began + seconds * (size - left) / size
    clock.now = end


def test_before_the_first_data_nothing_is_waited_for(clock: Clock) -> None:
    untaken = Untaken()
    untaken.heard()
    assert untaken.active == untaken.taken == float("-inf")
    assert untaken.room == FIRST


def test_a_word_takes_no_time_worth_mentioning(clock: Clock) -> None:
    untaken = Untaken()
    untaken.sent(100)
    assert untaken.active == clock.now
    assert 0 < untaken.taken - clock.now < 0.001


def test_of_an_unknown_guest_the_least_is_supposed(clock: Clock) -> None:
    untaken = Untaken()
    send(untaken, clock, 8 * MIB, 0.01)
    assert untaken.room == FIRST
    assert untaken.taken - clock.now == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("more", [2, 16, 64, 1024])
def test_a_fast_guest_is_known_by_what_it_must_have_taken(clock: Clock, more: int) -> None:
    untaken = Untaken()
    send(untaken, clock, UNKNOWN + more * MIB, more / 1000)
    assert untaken.room == SEND_DATA
    assert untaken.taken - clock.now < 0.3  # 36 MiB at the least that is fast


def test_a_slow_guest_has_small_data_and_its_time(clock: Clock) -> None:
    """It takes 8 MiB a second, so that we could send no faster once all was full."""
    untaken = Untaken()
    send(untaken, clock, UNKNOWN, 0.01)
    send(untaken, clock, 32 * MIB, 4)
    assert untaken.room == FIRST
    assert untaken.taken - clock.now == pytest.approx(UNKNOWN / (8 * MIB), rel=0.1)


def test_after_a_pause_for_all_of_it_there_is_a_new_stretch(clock: Clock) -> None:
    untaken = Untaken()
    send(untaken, clock, UNKNOWN + 64 * MIB, 0.1)
    clock.now += 10  # for 4 MiB in kernels and 128 of the large DATA, at 4 MiB a second
    untaken.sent(1)
    assert untaken.room == FIRST
    assert untaken.taken - clock.now < 0.001


def test_a_short_pause_is_none(clock: Clock) -> None:
    untaken = Untaken()
    send(untaken, clock, 8 * MIB, 0.01)
    clock.now += 1
    untaken.sent(1)
    assert untaken.taken - clock.now > 1.9


def test_the_peer_may_speak(clock: Clock) -> None:
    untaken = Untaken()
    untaken.sent(1)
    clock.now += 3
    untaken.heard()
    assert untaken.active == clock.now
    assert untaken.taken < clock.now


@given(
    st.lists(st.tuples(st.integers(1, SEND_DATA), st.floats(0, 0.1)), min_size=1, max_size=200),
)
def test_it_is_bounded_whatever_is_sent(pieces: list[tuple[int, float]]) -> None:
    clock, untaken = Clock(), Untaken()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(untaken_module, "time", clock)
        for size, pause in pieces:
            untaken.sent(size)
            assert clock.now < untaken.taken <= clock.now + (4 * MIB + TOKENS * SEND_DATA) / PACE
            assert untaken.room in {FIRST, SEND_DATA}
            clock.now += pause
