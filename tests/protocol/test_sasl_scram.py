"""SCRAM: good servers let us in, and bad ones learn nothing and are not believed."""

from __future__ import annotations

import base64
import hashlib
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spicebridge.errors import LoginError, ProtocolError, SpicebridgeError
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.login import LoggedIn
from tests.protocol.sasl_tools import (
    ACCEPTED,
    DONE,
    MORE,
    PASSWORD,
    POSITION,
    USER,
    ScramServer,
    begun,
    data,
    listed,
    login,
    said,
    said_first,
)

NAME = "SCRAM-SHA-256"
SALT = base64.b64encode(bytes(16)).decode()


def greeted() -> tuple[Exchange[LoggedIn], str]:
    """A client that has sent its first message, and its nonce."""
    exchange = begun(login(), NAME)
    first = said_first(exchange)[1]
    assert first is not None
    return exchange, first.decode().partition(",r=")[2]


def refused(exchange: Exchange[LoggedIn], sent: bytes) -> SpicebridgeError:
    """The error that these bytes give."""
    with pytest.raises(SpicebridgeError) as caught:
        exchange.receive_data(sent)
    assert PASSWORD not in str(caught.value)
    return caught.value


def server_first(nonce: str, *, salt: str = SALT, count: str = "4096") -> bytes:
    return data(f"r={nonce},s={salt},i={count}".encode()) + MORE


@pytest.mark.parametrize("name", ["SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("ending", ["with the proof", "after it"])
def test_a_server_that_knows_the_password_lets_us_in(name: str, ending: str) -> None:
    server, exchange = ScramServer(name), begun(login(), name)
    chosen, first = said_first(exchange)
    assert chosen == name
    exchange.receive_data(data(server.first(first)) + MORE)
    proof = data(server.final(said(exchange)))
    if ending == "with the proof":
        exchange.receive_data(proof + DONE)
    else:
        exchange.receive_data(proof + MORE)
        assert said(exchange) is None
        exchange.receive_data(data(None) + DONE)
    exchange.receive_data(ACCEPTED)
    assert (exchange.result.name, exchange.result.layer) == (f"SASL {name}", None)


def test_the_password_never_goes_over_the_wire() -> None:
    server, exchange = ScramServer(), begun(login(), NAME)
    first = said_first(exchange)[1]
    exchange.receive_data(data(server.first(first)) + MORE)
    final = said(exchange)
    assert first is not None
    assert final is not None
    assert first.startswith(f"n,,n={USER},r=".encode())
    for secret in (PASSWORD.encode(), hashlib.sha256(PASSWORD.encode()).digest()):
        assert secret not in first + final
        assert base64.b64encode(secret) not in first + final


# Servers that lie


def test_a_server_that_only_pretends_to_know_the_password_is_not_believed() -> None:
    exchange, nonce = greeted()
    exchange.receive_data(server_first(nonce + "theirs"))
    fake = base64.b64encode(bytes(32))
    error = refused(exchange, data(b"v=" + fake) + DONE)
    assert isinstance(error, LoginError)
    assert "could not prove in SASL SCRAM-SHA-256 that it knows the password" in error.problem


@pytest.mark.parametrize("proof", [None, b"v=", b"v=%%%", b"x", b"v=\xff"])
def test_a_server_without_a_proof_is_not_believed(proof: bytes | None) -> None:
    exchange, nonce = greeted()
    exchange.receive_data(server_first(nonce + "theirs"))
    error = refused(exchange, data(proof) + DONE + ACCEPTED)
    assert isinstance(error, LoginError | ProtocolError)


@pytest.mark.parametrize("when", ["at once", "before the proof"])
def test_a_server_that_is_done_before_it_has_proved_anything_is_not_believed(when: str) -> None:
    exchange, nonce = greeted()
    if when == "at once":
        sent = data(f"r={nonce}x,s={SALT},i=4096".encode()) + DONE + ACCEPTED
    else:
        exchange.receive_data(server_first(nonce + "x"))
        sent = data(None) + DONE + ACCEPTED
    assert isinstance(refused(exchange, sent), LoginError)


@pytest.mark.parametrize("count", ["1", "4095", "1000001", "2147483648", "9" * 19])
def test_the_hash_is_not_run_too_often_nor_too_few_times(count: str) -> None:
    exchange, nonce = greeted()
    with mock.patch("hashlib.pbkdf2_hmac", side_effect=AssertionError):
        error = refused(exchange, server_first(nonce + "x", count=count))
    assert isinstance(error, ProtocolError)
    assert error.expected == "4096 to 1000000 iterations of the hash"
    assert error.got == count
    assert error.offset == POSITION + len(listed(NAME))


@pytest.mark.parametrize("count", ["9" * 3000, "-5", "", "0x1000", "04096", "4096,i=4096"])
def test_a_count_that_is_none_is_refused_before_the_hash_is_run(count: str) -> None:
    exchange, nonce = greeted()
    with mock.patch("hashlib.pbkdf2_hmac", side_effect=AssertionError):
        assert isinstance(refused(exchange, server_first(nonce + "x", count=count)), ProtocolError)


@pytest.mark.parametrize("change", ["another", "cut", "the same"])
def test_a_nonce_that_does_not_continue_ours_is_refused(change: str) -> None:
    exchange, nonce = greeted()
    theirs = {"another": "x" * 80, "cut": nonce[:-1], "the same": nonce}[change]
    error = refused(exchange, server_first(theirs))
    assert isinstance(error, ProtocolError)
    assert "nonce" in error.got


@pytest.mark.parametrize(
    "challenge",
    [None, b"", b"\0", b"r=\0", b"\xff\xfe", b"x" * 4097, b"m=mandatory,r=x,s=y,i=1"],
    ids=["none", "empty", "NUL", "NUL inside", "no UTF-8", "long", "extension"],
)
def test_a_challenge_that_is_none_is_refused_at_its_place(challenge: bytes | None) -> None:
    exchange, _ = greeted()
    error = refused(exchange, data(challenge) + MORE)
    assert isinstance(error, ProtocolError)
    assert error.message == f"SASL {NAME}"
    assert error.offset == POSITION + len(listed(NAME))


def test_a_salt_with_a_nul_in_its_base64_is_refused() -> None:
    exchange, nonce = greeted()
    assert isinstance(
        refused(exchange, server_first(nonce + "x", salt="AAAA\0AAAA")), ProtocolError
    )


@pytest.mark.parametrize("step", ["first", "final"])
def test_an_error_of_the_server_is_told(step: str) -> None:
    exchange, nonce = greeted()
    if step == "final":
        exchange.receive_data(server_first(nonce + "x"))
    error = refused(exchange, data(b"e=invalid-proof\x1b[2J") + DONE)
    assert isinstance(error, LoginError)
    assert r"'invalid-proof\x1b[2J'" in error.problem
    assert "--password-file" in error.hint


@pytest.mark.parametrize("given", [("a\u0627b", "x"), ("x", "\udcff"), ("x", "a\x07")])
def test_characters_that_scram_forbids_are_told_without_the_password(
    given: tuple[str, str],
) -> None:
    with pytest.raises(LoginError, match="not for it") as caught:
        begun(login(*given), NAME)
    assert given[1] == "x" or given[1] not in str(caught.value)


@given(st.data())
@settings(max_examples=50)
def test_a_damaged_answer_is_refused_or_harmless(draw: st.DataObject) -> None:
    """Whatever is damaged, nobody who does not know the password is believed."""
    server, exchange = ScramServer(password="another"), begun(login(), NAME)
    challenge = bytearray(server.first(said_first(exchange)[1]))
    for _ in range(draw.draw(st.integers(0, 3))):
        challenge[draw.draw(st.integers(0, len(challenge) - 1))] = draw.draw(st.integers(0, 255))
    proof = draw.draw(st.binary(max_size=60))
    with pytest.raises(SpicebridgeError):
        exchange.receive_data(data(bytes(challenge)) + MORE + data(proof) + DONE + ACCEPTED)
