"""An Exchange drives a dialogue: whole steps in, whole answers out, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import ProtocolError
from spicebridge.protocol.dialogue import Dialogue, Exchange
from tests.protocol.wire import pieces


def echo_twice() -> Dialogue[str]:
    yield b"hello"
    first = yield 3
    yield first[::-1]
    yield b"!"
    second = yield 2
    return (first + second).decode()


def test_a_dialogue_that_speaks_first_has_its_words_ready() -> None:
    exchange = Exchange(echo_twice())
    assert exchange.data_to_send() == b"hello"
    assert exchange.data_to_send() == b""
    assert not exchange.done


@given(st.sets(st.integers(1, 4)))
def test_steps_are_the_same_however_the_bytes_are_cut(cuts: set[int]) -> None:
    exchange = Exchange(echo_twice())
    for piece in pieces(b"abcde", cuts):
        exchange.receive_data(piece)
    assert exchange.data_to_send() == b"hellocba!"
    assert exchange.done
    assert exchange.result == "abcde"


def test_needed_never_reaches_beyond_the_dialogue() -> None:
    exchange = Exchange(echo_twice())
    needs = []
    for byte in b"abcde":
        needs.append(exchange.needed)
        exchange.receive_data(bytes((byte,)))
    assert needs == [3, 2, 1, 2, 1]
    assert exchange.needed == 0


def test_a_dialogue_without_steps_is_done_at_once() -> None:
    def silent() -> Dialogue[int]:
        yield from ()
        return 7

    exchange = Exchange(silent())
    assert exchange.done
    assert exchange.result == 7


def refusing() -> Dialogue[None]:
    yield 1
    yield b"no"
    raise ProtocolError("test", 0, "nothing", "something")


def test_a_refusal_can_still_be_sent_after_the_error() -> None:
    exchange = Exchange(refusing())
    with pytest.raises(ProtocolError):
        exchange.receive_data(b"x")
    assert exchange.data_to_send() == b"no"
    assert not exchange.done


def test_bytes_after_a_refusal_do_not_make_it_a_success() -> None:
    exchange = Exchange(refusing())
    with pytest.raises(ProtocolError):
        exchange.receive_data(b"x")
    try:
        exchange.receive_data(b"yz")
    except ProtocolError:
        pass  # refusing again is as good as staying silent
    assert not exchange.done
