"""When a server is tried again that has gone away, and when no more."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.bridge.retry import FIRST_DELAY, SOON, STEADY, TAKEOVER_LIMIT, Retry
from spicebridge.errors import TakeoverError


@pytest.fixture
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: low)


pytestmark = pytest.mark.usefixtures("_no_jitter")


def taken_over(retry: Retry, age: float = 1.0) -> float:
    """A session that another client takes over."""
    retry.session_began()
    return retry.session_lost(age, clean=True)


# Delays


def test_delays_double_up_to_the_longest() -> None:
    retry = Retry(5.0)
    assert [retry.failed(away=True) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_the_longest_may_be_shorter_than_the_first() -> None:
    assert Retry(0.1).failed(away=True) == 0.1


def test_delays_go_on_growing_over_sessions_that_do_not_stay() -> None:
    retry = Retry(100.0)
    retry.session_began()
    delays = [retry.session_lost(STEADY - 1, clean=False)]
    for _ in range(3):
        retry.session_began()
        delays.append(retry.session_lost(STEADY - 1, clean=False))
    assert delays == [0.2, 0.4, 0.8, 1.6]


def test_they_begin_anew_after_a_session_that_stayed() -> None:
    retry = Retry(100.0)
    for _ in range(5):
        retry.failed(away=True)
    retry.session_began()
    assert retry.session_lost(STEADY, clean=False) == FIRST_DELAY
    assert retry.failed(away=True) == 2 * FIRST_DELAY


def test_a_server_may_be_away_for_years() -> None:
    retry = Retry(30.0)
    assert {retry.failed(away=True) for _ in range(5000)} >= {30.0}


@given(
    st.floats(0.01, 1000),
    st.lists(
        st.one_of(
            st.tuples(st.just("away"), st.booleans()), st.tuples(st.just("lost"), st.floats(0, 100))
        ),
        max_size=40,
    ),
)
def test_no_delay_is_longer_than_the_longest(
    longest: float, events: list[tuple[str, float]]
) -> None:
    retry = Retry(longest, takeover_limit=0)
    for what, value in events:
        if what == "away":
            delay = retry.failed(away=bool(value))
        else:
            retry.session_began()
            delay = retry.session_lost(value, clean=True)
        assert 0 < delay <= longest


def test_two_clients_do_not_come_back_at_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr(random, "uniform", uniform)
    assert Retry(100.0).failed(away=True) == pytest.approx(0.3)
    assert asked == [(1, 1.5)]


# Takeovers


def test_too_many_takeovers_one_after_another_are_the_end() -> None:
    retry = Retry(5.0)
    for count in range(1, TAKEOVER_LIMIT):
        taken_over(retry)
        assert retry.takeovers == count
    retry.session_began()
    with pytest.raises(TakeoverError, match="3 times") as caught:
        retry.session_lost(1.0, clean=True)
    assert caught.value.hint
    assert caught.value.exit_code == 13


def test_after_the_second_the_other_client_is_left_alone_for_long() -> None:
    retry = Retry(5.0)
    assert taken_over(retry) == FIRST_DELAY
    assert taken_over(retry) == 5.0


def test_a_limit_of_0_is_none() -> None:
    retry = Retry(0.1, takeover_limit=0)
    for _ in range(100):
        taken_over(retry)
    assert retry.takeovers == 100


def test_a_limit_of_1() -> None:
    with pytest.raises(TakeoverError):
        taken_over(Retry(5.0, takeover_limit=1))


@pytest.mark.parametrize("why", ["not clean", "it had stayed", "the server was away"])
def test_what_is_no_takeover_begins_the_count_anew(why: str) -> None:
    retry = Retry(5.0)
    taken_over(retry)
    taken_over(retry)
    if why == "the server was away":
        retry.failed(away=True)
    retry.session_began()
    retry.session_lost(SOON if why == "it had stayed" else 1.0, clean=why != "not clean")
    assert retry.takeovers == 0
    taken_over(retry)
    assert retry.takeovers == 1


def test_a_try_that_found_the_server_does_not_hide_a_takeover() -> None:
    retry = Retry(5.0)
    taken_over(retry)
    retry.failed(away=False)
    taken_over(retry)
    assert retry.takeovers == 2
