"""SASL on the wire: its framing, its list, its results, and PLAIN and EXTERNAL, which are short."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import LoginError, ProtocolError, SpicebridgeError
from spicebridge.protocol.constants import AuthMechanism
from spicebridge.protocol.dialogue import Exchange
from tests.protocol.sasl_tools import (
    ACCEPTED,
    DONE,
    MORE,
    PASSWORD,
    POSITION,
    USER,
    begun,
    data,
    listed,
    login,
    said,
    said_first,
    sized,
)
from tests.protocol.wire import pieces

MIB = 1024 * 1024


# Byte for byte


def test_the_name_has_no_nul_and_the_data_has_one_that_counts() -> None:
    exchange = begun(login("u", "p"), "PLAIN")
    assert exchange.data_to_send() == bytes.fromhex("05000000") + b"PLAIN" + bytes.fromhex(
        "05000000 00 75 00 70 00"
    )


def test_empty_data_is_not_the_same_as_none() -> None:
    exchange = begun(login("", ""), "EXTERNAL")
    assert exchange.data_to_send() == bytes.fromhex("08000000") + b"EXTERNAL" + bytes.fromhex(
        "01000000 00"
    )


def test_a_login_is_over_with_the_result_of_sasl_and_leaves_the_link_result_unread() -> None:
    exchange = begun(login(), "PLAIN")
    exchange.receive_data(data(None) + DONE + ACCEPTED)
    assert exchange.done
    assert (exchange.result.name, exchange.result.layer) == ("SASL PLAIN", None)
    assert exchange.needed == 0


def test_a_server_that_waits_for_an_answer_to_nothing_gets_one() -> None:
    exchange = begun(login(), "PLAIN")
    said_first(exchange)
    exchange.receive_data(data(None) + MORE)
    assert said(exchange) is None
    exchange.receive_data(data(None) + DONE + ACCEPTED)
    assert exchange.done


@given(st.sets(st.integers(1, 60)))
def test_bytes_may_be_cut_anywhere(cuts: set[int]) -> None:
    exchange = Exchange(login().steps(b"", POSITION))
    for piece in pieces(listed("PLAIN", "SCRAM-SHA-999") + data(b"") + DONE + ACCEPTED, cuts):
        exchange.receive_data(piece)
    assert exchange.done


def test_the_mechanism_of_sasl_is_that_of_auth_sasl() -> None:
    assert login().mechanism is AuthMechanism.SASL


def test_it_may_block_from_its_beginning_to_its_end() -> None:
    way = login()
    before = way.blocking
    exchange = begun(way, "PLAIN")
    meanwhile = way.blocking
    exchange.receive_data(data(None) + DONE + ACCEPTED)
    assert (before, meanwhile, way.blocking) == (False, True, False)


# PLAIN and EXTERNAL


def test_external_lets_us_in() -> None:
    exchange = begun(login("", ""), "EXTERNAL")
    exchange.receive_data(data(None) + DONE + ACCEPTED)
    assert exchange.result.name == "SASL EXTERNAL"


def test_plain_sends_name_and_password_with_an_empty_authorization_identity() -> None:
    exchange = begun(login("jürgen", "grün"), "PLAIN")
    assert said_first(exchange) == ("PLAIN", b"\0" + "jürgen\0grün".encode())


def test_plain_sends_the_bytes_of_a_password_that_is_no_utf8() -> None:
    """os.environ hands such bytes on as surrogates (PEP 383)."""
    exchange = begun(login("u", b"caf\xe9".decode("utf-8", "surrogateescape")), "PLAIN")
    assert said_first(exchange) == ("PLAIN", b"\0u\0caf\xe9")


@pytest.mark.parametrize("names", [("a\0b", "c"), ("a", "b\0c")])
def test_plain_takes_no_nul(names: tuple[str, str]) -> None:
    with pytest.raises(LoginError, match=r"PLAIN .*NUL"):
        begun(login(*names), "PLAIN")


def test_external_names_who_we_want_to_be() -> None:
    exchange = begun(login(USER, "", mechanism="EXTERNAL"), "EXTERNAL")
    assert said_first(exchange) == ("EXTERNAL", USER.encode())


# Refusals


def test_a_refused_login_says_what_the_server_says() -> None:
    exchange = begun(login(), "PLAIN")
    refusal = struct.pack("<I", 1) + sized(b"Authentication failed\0")
    with pytest.raises(LoginError, match="SASL PLAIN: 'Authentication failed'"):
        exchange.receive_data(data(None) + DONE + refusal)


def test_what_the_server_says_cannot_play_tricks_on_a_terminal() -> None:
    exchange = begun(login(), "PLAIN")
    with pytest.raises(LoginError) as caught:
        exchange.receive_data(data(None) + DONE + struct.pack("<I", 1) + sized(b"\x1b[2J\n\xff"))
    assert str(caught.value).isprintable()


def test_a_closed_connection_means_nothing_before_the_login_and_after_it() -> None:
    """After it, the link result tells."""
    client = login()
    assert client.hung_up() is None
    begun(client, "PLAIN").receive_data(data(None) + DONE + ACCEPTED)
    assert client.hung_up() is None


def test_a_server_that_closes_before_its_list_is_told_so() -> None:
    plain, secure = login(confidential=False), login()
    for client in (plain, secure):
        assert not Exchange(client.steps(b"", POSITION)).done
    for client, hint in ((plain, "TLS"), (secure, "SASL configuration")):
        refusal = client.hung_up()
        assert refusal is not None
        assert "instead of naming its SASL mechanisms" in refusal.problem
        assert hint in refusal.hint


def test_a_server_that_closes_after_the_password_says_that_it_is_wrong() -> None:
    client = login()
    begun(client, "PLAIN")
    refusal = client.hung_up()
    assert refusal is not None
    assert "SASL PLAIN" in refusal.problem
    assert "--password-file" in refusal.hint
    assert refusal.by_password


def test_a_server_that_closes_on_external_says_nothing_of_a_password() -> None:
    client = login("", "")
    begun(client, "EXTERNAL")
    refusal = client.hung_up()
    assert refusal is not None
    assert not refusal.by_password


# Servers that break the rules


@pytest.mark.parametrize(
    ("sent", "offset", "got"),
    [
        (struct.pack("<I", 1025), POSITION, "1025"),
        (struct.pack("<I", 2**32 - 1), POSITION, "4294967295"),
        (sized(b",PLAIN,scram-sha-1,"), POSITION + 11, "'scram-sha-1'"),
        (sized(b"PLAIN\0"), POSITION + 4, r"'PLAIN\x00'"),
        (sized(b",\x1b[2J,"), POSITION + 5, r"'\x1b[2J'"),
        (sized(b",\xe9," + b"A" * 21), POSITION + 5, "'é'"),
        (sized(b"A" * 21), POSITION + 4, "A" * 21),
    ],
    ids=["long", "4 GiB", "small letters", "NUL", "escape", "Latin-1", "long name"],
)
def test_a_list_that_is_none_is_refused_at_its_place(sent: bytes, offset: int, got: str) -> None:
    exchange = Exchange(login().steps(b"", POSITION))
    with pytest.raises(ProtocolError) as caught:
        exchange.receive_data(sent)
    assert caught.value.message == "SASL mechanism list"
    assert caught.value.offset == offset
    assert got in caught.value.got


@pytest.mark.parametrize(
    ("sent", "offset", "got"),
    [
        (struct.pack("<I", MIB + 1), 0, f"{MIB + 1}"),
        (data(None) + b"\2", 4, "2"),
        (data(b"abc") + b"\xff", 8, "255"),
        (data(None) + MORE + data(b"abc") + DONE, 5, "more of it"),
        (data(None) + MORE + data(None) + MORE, 5, "more of it"),
        (data(None) + DONE + struct.pack("<II", 1, 1025), 9, "1025"),
    ],
    ids=["long", "done 2", "done 255", "data at the end", "no end", "long reason"],
)
def test_an_answer_that_is_none_is_refused_at_its_place(sent: bytes, offset: int, got: str) -> None:
    exchange = begun(login(), "PLAIN")
    with pytest.raises(ProtocolError) as caught:
        exchange.receive_data(sent)
    assert caught.value.offset == POSITION + len(listed("PLAIN")) + offset
    assert got in caught.value.got


def test_a_mebibyte_is_not_too_much() -> None:
    exchange = begun(login(), "PLAIN")
    exchange.receive_data(sized(bytes(MIB)) + DONE + ACCEPTED)
    assert exchange.done


@given(st.sampled_from(["", "SCRAM-SHA-256", "PLAIN"]), st.binary(max_size=200))
def test_garbage_gives_an_error_on_one_line_or_a_wish_for_more(name: str, garbage: bytes) -> None:
    """From the start, and after a list."""
    exchange = begun(login(), name) if name else Exchange(login().steps(b"", POSITION))
    told = ""
    try:
        exchange.receive_data(garbage)
    except SpicebridgeError as error:
        told = str(error)
    assert PASSWORD not in told
    assert "\n" not in told


def test_the_password_is_not_in_what_a_client_is_shown_as() -> None:
    client = login()
    assert PASSWORD not in repr(client) + repr(vars(client))
