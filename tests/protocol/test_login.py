"""Tickets: what is encrypted, who is let in, and keys that are none."""

from __future__ import annotations

from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import LoginError, ProtocolError, UsageError
from spicebridge.protocol.constants import (
    MAX_PASSWORD_LENGTH,
    TICKET_BYTES,
    TICKET_PUBKEY_BYTES,
    AuthMechanism,
    CommonCap,
)
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.login import ClientTicket, choose_login
from spicebridge.protocol.sasl import ClientSasl
from spicebridge.protocol.server_ticket import ServerTicket, _oaep
from tests.protocol.wire import KEY, PUBKEY

_DER: Final = Encoding.DER, PublicFormat.SubjectPublicKeyInfo


def ticket(password: str) -> bytes:
    """What a client with this password sends."""
    return Exchange(ClientTicket(password).steps(PUBKEY, 0)).data_to_send()


def admitted(expected: str | None, encrypted: bytes) -> bool:
    """Whether a server lets a ticket in."""
    server = Exchange(ServerTicket(KEY, expected).steps())
    server.receive_data(encrypted)
    return server.result


passwords = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=15)


@given(passwords, passwords)
def test_only_the_right_password_comes_in(right: str, tried: str) -> None:
    assert admitted(right, ticket(right))
    assert admitted(right, ticket(tried)) == (right == tried)


def test_a_ticket_is_the_password_and_a_nul_under_rsa_oaep() -> None:
    encrypted = ticket("secret")
    assert len(encrypted) == TICKET_BYTES == 128
    assert KEY.decrypt(encrypted, _oaep()) == b"secret\0"


def test_a_ticket_takes_no_time_and_is_told_as_what_it_is() -> None:
    login = ClientTicket("secret")
    exchange = Exchange(login.steps(PUBKEY, 0))
    assert (exchange.result.name, exchange.result.layer) == ("ticket", None)
    assert not login.blocking


def test_a_server_that_closes_the_connection_says_nothing_of_a_ticket() -> None:
    """A wrong one is told by the link result."""
    login = ClientTicket("secret")
    assert not Exchange(login.steps(PUBKEY, 0)).needed
    assert login.hung_up() is None


def test_what_follows_the_nul_of_a_ticket_means_nothing() -> None:
    """libspice-server compares C strings; spice-client-glib sends one NUL, others may pad."""
    padded = KEY.public_key().encrypt(b"secret\0\0\0\0", _oaep())
    assert admitted("secret", padded)


def test_without_a_password_everybody_comes_in_whatever_the_ticket() -> None:
    assert admitted(None, ticket("anything"))
    assert admitted(None, bytes(TICKET_BYTES))


@pytest.mark.parametrize("garbage", [bytes(TICKET_BYTES), b"\xff" * TICKET_BYTES])
def test_a_ticket_that_cannot_be_decrypted_is_a_wrong_password(garbage: bytes) -> None:
    assert not admitted("secret", garbage)


def test_an_empty_password_is_not_the_same_as_none() -> None:
    assert admitted("", ticket(""))
    assert not admitted("", ticket("secret"))


def test_a_password_of_the_longest_length_fits_and_one_more_byte_is_refused() -> None:
    longest = "ä" * (MAX_PASSWORD_LENGTH // 2)
    assert admitted(longest, ticket(longest))
    with pytest.raises(UsageError, match="61 bytes") as caught:
        ClientTicket(longest + "x")
    assert "60" in caught.value.hint


def test_a_password_that_is_no_utf8_is_sent_as_the_bytes_the_environment_holds() -> None:
    """os.environ hands such bytes on as surrogates (PEP 383)."""
    encrypted = ticket(b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert KEY.decrypt(encrypted, _oaep()) == b"caf\xe9\0"


def der(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """The public half of a key as a link reply would carry it."""
    return key.public_key().public_bytes(*_DER)


def test_the_key_of_a_link_reply_fills_its_field() -> None:
    assert len(PUBKEY) == TICKET_PUBKEY_BYTES == 162


@pytest.mark.parametrize(
    "pubkey",
    [
        bytes(162),
        PUBKEY[:-1],
        PUBKEY + b"\0",
        der(rsa.generate_private_key(65537, 2048)),
        der(ec.generate_private_key(ec.SECP256R1())),
    ],
    ids=["zeros", "cut", "longer", "2048 bits", "elliptic curve"],
)
def test_a_key_that_is_no_rsa_1024_is_refused_at_its_place(pubkey: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        Exchange(ClientTicket("x").steps(pubkey, 0))
    error = caught.value
    assert (error.message, error.offset) == ("SpiceLinkReply", 20)
    assert error.expected == "an RSA public key of 1024 bits in DER"
    assert error.got == "something else"


@pytest.mark.parametrize(
    ("place", "value"),
    [(29, PUBKEY[29] & 0x7F), (156, PUBKEY[156] ^ 1), (161, PUBKEY[161] ^ 1)],
    ids=["1023 bits", "even modulus", "even exponent"],
)
def test_a_key_that_cannot_encrypt_is_refused_at_its_place(place: int, value: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        Exchange(ClientTicket("x").steps(PUBKEY[:place] + bytes((value,)) + PUBKEY[place + 1 :], 0))
    error = caught.value
    assert (error.message, error.offset) == ("SpiceLinkReply", 20)
    assert error.got == "one that does not encrypt"


@given(st.lists(st.tuples(st.integers(0, 161), st.integers(0, 255)), max_size=4))
def test_a_damaged_key_is_refused_or_encrypts_but_nothing_else(
    changes: list[tuple[int, int]],
) -> None:
    damaged = bytearray(PUBKEY)
    for place, value in changes:
        damaged[place] = value
    try:
        said = Exchange(ClientTicket("x").steps(bytes(damaged), 0)).data_to_send()
    except ProtocolError:
        return
    assert len(said) == TICKET_BYTES


def test_the_first_login_that_the_server_offers_is_chosen() -> None:
    login = ClientTicket()
    assert choose_login([login], {CommonCap.AUTH_SPICE, CommonCap.AUTH_SASL}) is login


@pytest.mark.parametrize(
    ("offered", "named"),
    [
        ({CommonCap.AUTH_SASL}, "no login with a ticket, only with SASL; allow logins"),
        (set(), "only with nothing that we know"),
    ],
    ids=["SASL only", "nothing"],
)
def test_a_server_without_our_login_is_told_with_what_it_offers(
    offered: set[int], named: str
) -> None:
    with pytest.raises(LoginError, match=named):
        choose_login([ClientTicket()], offered)


def test_who_insists_on_sasl_is_told_that_a_ticket_is_taken() -> None:
    sasl = ClientSasl("me", "secret", mechanism="PLAIN", confidential=True, host="h")
    with pytest.raises(LoginError, match="no login with SASL, only with a ticket; leave out --sa"):
        choose_login([sasl], {CommonCap.AUTH_SPICE})


def test_the_mechanism_of_tickets_is_that_of_auth_spice() -> None:
    assert ClientTicket.mechanism is ServerTicket.mechanism is AuthMechanism.SPICE
    assert int(AuthMechanism.SPICE) == 1
    assert int(AuthMechanism.SASL) == 2
