"""Which mechanism is used, and what is said of those that are not."""

from __future__ import annotations

import sys

import pytest

from spicebridge.errors import LoginError, UsageError
from spicebridge.protocol.sasl import ClientSasl
from spicebridge.protocol.sasl_choice import MECHANISMS
from spicebridge.protocol.sasl_gssapi import load_gssapi
from spicebridge.protocol.sasl_mechanisms import UnreadyError
from tests.protocol.sasl_tools import begun, login, said_first

# fmt: off
CYRUS = [
    "GSS-SPNEGO", "GSSAPI", "SCRAM-SHA-512", "SCRAM-SHA-384", "SCRAM-SHA-256", "SCRAM-SHA-224",
    "SCRAM-SHA-1", "GS2-KRB5", "GS2-IAKERB", "DIGEST-MD5", "CRAM-MD5", "NTLM", "PLAIN", "LOGIN",
    "ANONYMOUS",
]
# fmt: on
"""What QEMU on Debian 12 offers in TLS, where nobody has told it what to offer."""


@pytest.fixture(autouse=True)
def _no_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRB5CCNAME", "FILE:/nonexistent")


def refusal(client: ClientSasl, *offered: str) -> LoginError:
    with pytest.raises(LoginError) as caught:
        begun(client, *offered)
    return caught.value


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (CYRUS, "SCRAM-SHA-512"),
        (["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256"], "SCRAM-SHA-256"),
        (["PLAIN", "SCRAM-SHA-1"], "SCRAM-SHA-1"),
        (["LOGIN", "EXTERNAL", "PLAIN"], "PLAIN"),
    ],
)
def test_the_strongest_that_is_offered_is_used(offered: list[str], chosen: str) -> None:
    assert said_first(begun(login(), *offered))[0] == chosen


def test_another_one_is_used_where_the_user_says_so() -> None:
    exchange = begun(login(mechanism="scram-sha-1"), *CYRUS)
    assert said_first(exchange)[0] == "SCRAM-SHA-1"


def test_without_name_and_password_a_certificate_speaks_for_us() -> None:
    exchange = begun(login("", ""), "SCRAM-SHA-256", "GSSAPI", "EXTERNAL")
    assert said_first(exchange)[0] == "EXTERNAL"


def test_with_a_password_external_is_not_used() -> None:
    assert "EXTERNAL (it is for logins without a password)" in str(refusal(login(), "EXTERNAL"))


def test_outside_of_tls_there_is_no_external() -> None:
    error = refusal(login(username="", password="", confidential=False), "EXTERNAL")
    assert "EXTERNAL (it needs TLS)" in error.problem


def test_outside_of_tls_no_password_is_sent_whoever_asks() -> None:
    for mechanism in ("", "PLAIN"):
        error = refusal(login(confidential=False, mechanism=mechanism), "PLAIN")
        assert "PLAIN (it would send the password in the clear)" in error.problem
        assert "TLS" in error.hint


def test_outside_of_tls_scram_is_used_for_the_password_is_not_sent() -> None:
    exchange = begun(login(confidential=False), "PLAIN", "SCRAM-SHA-256")
    assert said_first(exchange)[0] == "SCRAM-SHA-256"


@pytest.mark.parametrize(
    ("username", "password", "lacks", "hint"),
    [
        ("", "x", "a username", "give spice://USER@HOST:PORT"),
        ("x", "", "a password", "give --password-file FILE"),
        (
            "",
            "",
            "a username and a password",
            "give spice://USER@HOST:PORT and --password-file FILE",
        ),
    ],
)
def test_what_is_missing_is_said_with_its_option(
    username: str, password: str, lacks: str, hint: str
) -> None:
    error = refusal(login(username=username, password=password), "SCRAM-SHA-256", "PLAIN")
    assert f"SCRAM-SHA-256, PLAIN (it needs {lacks})" in error.problem
    assert error.hint == hint


def test_weak_mechanisms_are_listed_with_the_reason_that_we_do_not_use_them() -> None:
    error = refusal(
        login(), "DIGEST-MD5", "CRAM-MD5", "ANONYMOUS", "LOGIN", "SCRAM-SHA-256-PLUS", "OTP"
    )
    assert error.problem == (
        "no SASL mechanism can be used of those that the server offers: "
        "DIGEST-MD5 (obsolete, RFC 6331), CRAM-MD5 (obsolete, and proves nothing of the server), "
        "ANONYMOUS (it lets everybody in), LOGIN (obsolete, PLAIN is the same), "
        "SCRAM-SHA-256-PLUS (it binds to TLS, which spicebridge does not do), "
        "OTP (unknown to spicebridge)"
    )
    assert "SCRAM-SHA-256" in error.hint


def test_outside_of_tls_the_hint_is_tls() -> None:
    for offered in (["DIGEST-MD5"], []):
        assert "TLS" in refusal(login(confidential=False), *offered).hint


def test_a_server_that_offers_nothing_is_told_so() -> None:
    assert "there are none" in str(refusal(login()))


def test_a_mechanism_that_the_server_does_not_offer_is_told_with_what_it_offers() -> None:
    error = refusal(login(mechanism="SCRAM-SHA-256"), "PLAIN", "SCRAM-SHA-1")
    assert error.problem == (
        "the server does not offer SASL SCRAM-SHA-256, only PLAIN, SCRAM-SHA-1"
    )
    assert "only nothing" in str(refusal(login(mechanism="PLAIN")))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("DIGEST-MD5", "obsolete"),
        ("anonymous", "everybody"),
        ("SCRAM-SHA-256-PLUS", "binds"),
        ("SCRAM", "unknown"),
    ],
)
def test_asking_for_a_mechanism_that_we_do_not_use_is_wrong_usage(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        login(mechanism=name)
    assert ", ".join(MECHANISMS) in caught.value.hint


def test_asking_for_gssapi_where_its_module_is_missing_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", None)
    with pytest.raises(UnreadyError):
        load_gssapi()
    with pytest.raises(UsageError, match="module gssapi") as caught:
        login(mechanism="GSSAPI")
    assert "spicebridge[gssapi]" in caught.value.hint
