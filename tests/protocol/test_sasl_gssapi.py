"""GSSAPI against a Kerberos library that is none: so that the server can lie, without a KDC.

A real one is in tests/real/test_sasl.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from spicebridge.errors import LoginError, ProtocolError, SessionLostError, SpicebridgeError
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.login import LoggedIn
from tests.protocol.sasl_tools import (
    ACCEPTED,
    DONE,
    MORE,
    begun,
    data,
    login,
    said,
    said_first,
)

OVERHEAD = 28
"""Bytes that a token has more than what is in it."""

FROM_SERVER, FROM_CLIENT = b"S" * OVERHEAD, b"C" * OVERHEAD


class FakeError(Exception):
    """As gssapi words its GSSError."""

    def __init__(self, minor: str) -> None:
        super().__init__(f"Major (851968): Unspecified failure, Minor (2529639053): {minor}")


class NotEncryptedError(Exception):
    """As gssapi.exceptions.EncryptionNotUsed, which is not a GSSError."""


@dataclass
class FakeKerberos:
    """What a user has, and what was asked for."""

    tickets: tuple[str, ...] = ("alice",)
    services: tuple[str, ...] = ("spice@vm.example",)
    asked: list[str] = field(default_factory=list)
    expired: bool = False

    def module(self) -> Any:
        flags = (
            "mutual_authentication",
            "replay_detection",
            "out_of_sequence_detection",
            "integrity",
            "confidentiality",
        )
        return SimpleNamespace(
            exceptions=SimpleNamespace(GSSError=FakeError, GeneralError=NotEncryptedError),
            Name=lambda text, kind: text.decode(errors="surrogateescape"),
            NameType=SimpleNamespace(user="user", hostbased_service="service"),
            MechType=SimpleNamespace(kerberos="krb5"),
            RequirementFlag=SimpleNamespace(**{name: 1 << at for at, name in enumerate(flags)}),
            Credentials=self._credentials,
            SecurityContext=self._context,
        )

    def _credentials(self, usage: str, name: str | None, mechs: list[str]) -> str:
        assert (usage, mechs) == ("initiate", ["krb5"])
        if name not in (None, *self.tickets) or not self.tickets:
            raise FakeError("No Kerberos\ncredentials\x1b available")
        return name or self.tickets[0]

    def _context(self, name: str, creds: str, usage: str, mech: str, flags: int) -> FakeContext:
        assert (usage, mech, flags) == ("initiate", "krb5", 0b11111)
        self.asked.append(f"{creds} for {name}")
        return FakeContext(self, name)


class FakeContext:
    """A security context: the server's only token is `AP-REP`."""

    def __init__(self, kerberos: FakeKerberos, service: str) -> None:
        self._kerberos = kerberos
        self._service = service
        self.complete = False

    def step(self, token: bytes | None = None) -> bytes | None:
        if self._service not in self._kerberos.services:
            raise FakeError(f"Server {self._service} not found in Kerberos database")
        if token is None:
            return b"AP-REQ"
        if token != b"AP-REP":
            raise FakeError("Decrypt integrity check failed")
        self.complete = True
        return None

    def wrap(self, message: bytes, encrypt: bool) -> Any:
        return SimpleNamespace(message=FROM_CLIENT + message, encrypted=encrypt)

    def unwrap(self, message: bytes) -> Any:
        if not message.startswith(FROM_SERVER):
            raise FakeError("Message stream modified")
        return SimpleNamespace(message=message.removeprefix(FROM_SERVER), encrypted=False)

    def encrypt(self, message: bytes) -> bytes:
        if self._kerberos.expired:
            raise FakeError("Ticket expired")
        return FROM_CLIENT + message

    def decrypt(self, message: bytes) -> bytes:
        if message.startswith(b"clear"):
            raise NotEncryptedError("not encrypted")
        plain: bytes = self.unwrap(message).message
        return plain

    def get_wrap_size_limit(self, desired_output_size: int, encrypted: bool) -> int:
        return max(0, desired_output_size - OVERHEAD)


@pytest.fixture
def kerberos(monkeypatch: pytest.MonkeyPatch) -> FakeKerberos:
    fake = FakeKerberos()
    monkeypatch.setitem(sys.modules, "gssapi", fake.module())
    return fake


def started(
    username: str = "", *, confidential: bool = False, host: str = "vm.example"
) -> Exchange[LoggedIn]:
    client = login(username, "", confidential=confidential, host=host)
    return begun(client, "GSSAPI", "DIGEST-MD5")


def asked_for_layers(*, confidential: bool = False) -> Exchange[LoggedIn]:
    """A login that waits for the server's layers."""
    exchange = started(confidential=confidential)
    assert said_first(exchange) == ("GSSAPI", b"AP-REQ")
    exchange.receive_data(data(b"AP-REP") + MORE)
    assert said(exchange) == b""
    return exchange


def offer(layers: int, size: int = 8192) -> bytes:
    return data(FROM_SERVER + bytes((layers,)) + size.to_bytes(3)) + MORE


def refused(exchange: Exchange[LoggedIn], sent: bytes) -> SpicebridgeError:
    with pytest.raises(SpicebridgeError) as caught:
        exchange.receive_data(sent)
    return caught.value


@pytest.mark.usefixtures("kerberos")
def test_without_tls_the_layer_that_encrypts_is_agreed_on() -> None:
    exchange = asked_for_layers()
    exchange.receive_data(offer(1 | 2 | 4))
    assert said(exchange) == FROM_CLIENT + bytes((4, 2, 0, 0))
    exchange.receive_data(data(None) + DONE + ACCEPTED)
    assert exchange.result.name == "SASL GSSAPI"
    layer = exchange.result.layer
    assert layer is not None
    frames = layer.encode(bytes(10_000))
    assert frames[:4] == (8192).to_bytes(4), "what the server takes at once is not used up"
    assert len(frames) == 10_000 + 2 * (4 + OVERHEAD)


@pytest.mark.usefixtures("kerberos")
def test_in_tls_no_layer_is_wanted() -> None:
    exchange = asked_for_layers(confidential=True)
    exchange.receive_data(offer(1, 0))
    assert said(exchange) == FROM_CLIENT + bytes((1, 0, 0, 0))
    exchange.receive_data(data(None) + DONE + ACCEPTED)
    assert exchange.result.layer is None


@pytest.mark.usefixtures("kerberos")
def test_where_nobody_listens_a_server_may_still_want_the_layer() -> None:
    exchange = asked_for_layers(confidential=True)
    exchange.receive_data(offer(4) + data(None) + DONE + ACCEPTED)
    assert exchange.result.layer is not None


def test_the_username_chooses_the_ticket(kerberos: FakeKerberos) -> None:
    kerberos.tickets = ("alice", "bob")
    started()
    started("bob")
    assert kerberos.asked == ["alice for spice@vm.example", "bob for spice@vm.example"]


def test_gssapi_comes_before_scram_where_there_is_a_ticket(kerberos: FakeKerberos) -> None:
    offered = ["SCRAM-SHA-256", "GSSAPI"]
    assert said_first(begun(login("alice", host="vm.example"), *offered))[0] == "GSSAPI"
    kerberos.tickets = ()
    assert said_first(begun(login("alice", host="vm.example"), *offered))[0] == "SCRAM-SHA-256"


def test_the_password_is_used_where_the_ticket_is_somebody_elses(kerberos: FakeKerberos) -> None:
    client = login("bob", host="vm.example")
    assert said_first(begun(client, "SCRAM-SHA-256", "GSSAPI"))[0] == "SCRAM-SHA-256"
    assert not kerberos.asked


def test_a_user_without_a_ticket_is_told_how_to_get_one(kerberos: FakeKerberos) -> None:
    kerberos.tickets = ()
    for username, hint in (("", "run kinit"), ("bob", "run kinit bob")):
        with pytest.raises(LoginError) as caught:
            started(username)
        assert r"GSSAPI (No Kerberos credentials\x1b available)" in caught.value.problem
        assert caught.value.hint == hint


@pytest.mark.usefixtures("kerberos")
def test_a_server_that_kerberos_does_not_know_is_told_with_its_name() -> None:
    with pytest.raises(LoginError, match="Server spice@elsewhere not found") as caught:
        started(host="elsewhere")
    assert "spice/HOST" in caught.value.hint


@pytest.mark.usefixtures("kerberos")
def test_with_a_password_and_without_a_ticket_the_hint_is_also_tls() -> None:
    with pytest.raises(LoginError) as caught:
        begun(login("bob", confidential=False), "GSSAPI", "DIGEST-MD5")
    assert caught.value.hint.startswith("run kinit bob or connect with TLS")


def test_without_the_module_the_user_is_told_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", None)
    with pytest.raises(LoginError, match="module gssapi") as caught:
        started()
    assert "spicebridge[gssapi]" in caught.value.hint


# Servers that lie


@pytest.mark.usefixtures("kerberos")
@pytest.mark.parametrize("token", [b"forged", None])
def test_a_server_that_cannot_prove_who_it_is_is_not_believed(token: bytes | None) -> None:
    error = refused(started(), data(token) + MORE)
    assert isinstance(error, LoginError)
    assert "could not prove in SASL GSSAPI who it is: Decrypt integrity" in error.problem


@pytest.mark.usefixtures("kerberos")
@pytest.mark.parametrize(
    "sent", [data(None) + DONE + ACCEPTED, data(b"AP-REP") + DONE + ACCEPTED], ids=["none", "half"]
)
def test_a_server_that_is_done_too_early_is_not_believed(sent: bytes) -> None:
    """Without the layer that its next token brings, all would go in the clear."""
    assert isinstance(refused(started(), sent), LoginError)


@pytest.mark.usefixtures("kerberos")
def test_layers_that_somebody_else_offers_are_refused() -> None:
    error = refused(asked_for_layers(), data(bytes((1, 0, 0, 0))) + MORE)
    assert isinstance(error, ProtocolError)
    assert error.got == "Message stream modified"


@pytest.mark.usefixtures("kerberos")
@pytest.mark.parametrize("layers", [b"", b"\4\0\0", b"\4\0\0\0\0"])
def test_layers_of_another_size_are_refused(layers: bytes) -> None:
    error = refused(asked_for_layers(), data(FROM_SERVER + layers) + MORE)
    assert isinstance(error, ProtocolError)
    assert error.got == f"{len(layers)} bytes"


@pytest.mark.usefixtures("kerberos")
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_without_tls_there_is_no_login_without_encryption(layers: int) -> None:
    error = refused(asked_for_layers(), offer(layers))
    assert isinstance(error, LoginError)
    assert "no encryption" in error.problem


@pytest.mark.usefixtures("kerberos")
def test_a_server_that_takes_no_token_is_refused() -> None:
    assert isinstance(refused(asked_for_layers(), offer(4, OVERHEAD)), ProtocolError)


# In the layer


@pytest.mark.usefixtures("kerberos")
@pytest.mark.parametrize(
    ("token", "got"), [(b"forged", "Message stream modified"), (b"clear", "not encrypted")]
)
def test_a_forged_frame_is_refused(token: bytes, got: str) -> None:
    exchange = asked_for_layers()
    exchange.receive_data(offer(4) + data(None) + DONE + ACCEPTED)
    layer = exchange.result.layer
    assert layer is not None
    layer.feed((OVERHEAD + 1).to_bytes(4) + FROM_SERVER + b"a")
    buffer = bytearray(9)
    assert layer.take(memoryview(buffer)) == 1
    assert buffer[:1] == b"a"
    with pytest.raises(ProtocolError) as caught:
        layer.feed(len(token).to_bytes(4) + token)
    assert caught.value.got == got


def test_a_layer_that_can_encrypt_no_more_says_so(kerberos: FakeKerberos) -> None:
    exchange = asked_for_layers()
    exchange.receive_data(offer(4) + data(None) + DONE + ACCEPTED)
    kerberos.expired = True
    assert exchange.result.layer is not None
    with pytest.raises(SessionLostError, match="Ticket expired"):
        exchange.result.layer.encode(b"a")
