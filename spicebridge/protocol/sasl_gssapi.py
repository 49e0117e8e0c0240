"""GSSAPI, which is Kerberos 5, as a SASL mechanism (RFC 4752), with its security layer.

The work is done by the system's Kerberos library through the module ``gssapi``, which is optional
(``spicebridge[gssapi]``) and imported only here, when it is needed. Making the first message asks
the KDC for a ticket for ``spice@host``; that is I/O of the library's own, and may block.

libspice-server wants the layer whenever the connection is not TLS, Unix sockets included
(``red-stream.cpp``: red_sasl_start_auth sets min_ssf to 56), and none in TLS (max_ssf 0). Only the
layer that encrypts is strong enough for it.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Final, Protocol

from spicebridge.errors import LoginError, SessionLostError, printable
from spicebridge.protocol.constants import MAX_SASL_TOKEN, SEND_DATA
from spicebridge.protocol.sasl_mechanisms import BadChallengeError, Credentials, Talk, UnreadyError
from spicebridge.protocol.security_layer import BadTokenError, FrameLayer

_MINOR: Final = re.compile(r", Minor \((?!0\))\d+\): (.+)", re.ASCII | re.DOTALL)
"""In the text of a ``gssapi.exceptions.GSSError``."""

# Bits of the security layers in the last two messages (RFC 4752, section 3.3).
_NO_LAYER: Final = 1
_CONFIDENTIALITY: Final = 4


class _Token(Protocol):
    message: bytes


class _Context(Protocol):
    """What we use of ``gssapi.SecurityContext``, whose types are not there if it is not."""

    complete: bool

    def step(self, token: bytes | None = None) -> bytes | None: ...
    def wrap(self, message: bytes, encrypt: bool) -> _Token: ...
    def unwrap(self, message: bytes) -> _Token: ...
    def encrypt(self, message: bytes) -> bytes: ...
    def decrypt(self, message: bytes) -> bytes: ...
    def get_wrap_size_limit(self, desired_output_size: int, encrypted: bool) -> int: ...


def load_gssapi() -> ModuleType:
    """The module ``gssapi``.

    Raises:
        UnreadyError: it is not installed, or the library below it is not.
    """
    try:
        return importlib.import_module("gssapi")
    except (ImportError, OSError):
        raise UnreadyError(
            "it needs the Python module gssapi", "pip install 'spicebridge[gssapi]'"
        ) from None


def gssapi(credentials: Credentials) -> Talk:
    """GSSAPI: both sides prove with Kerberos tickets who they are.

    Args:
        credentials: the username chooses among the tickets that the user has; without one it is
            the user's default. The password is not used.

    Returns:
        How to make the layer that encrypts, unless the connection does that already.

    Raises:
        UnreadyError: there is no ticket, for us or for the server.
        BadChallengeError: the server's token is not what it should be.
        LoginError: the server could not prove who it is, or wants no encryption.
    """
    module = load_gssapi()
    problems = (module.exceptions.GSSError, module.exceptions.GeneralError)
    context, token = _start(module, credentials, problems)
    challenge = yield token
    try:
        while not context.complete:
            token = context.step(challenge or b"")
            challenge = yield token or b""
    except problems as error:
        raise LoginError(
            f"the server could not prove in SASL GSSAPI who it is: {_reason(error)}",
            "it may not be the server that it seems to be: check the address",
        ) from None
    try:
        offer = context.unwrap(challenge or b"").message
    except problems as error:
        raise BadChallengeError("a token with the security layers", _reason(error)) from None
    if len(offer) != 4:
        raise BadChallengeError("4 bytes of security layers", f"{len(offer)} bytes")
    if credentials.confidential and offer[0] & _NO_LAYER:
        yield context.wrap(bytes((_NO_LAYER, 0, 0, 0)), False).message
        return None
    return (yield from _agree_on_layer(context, offer, problems))


def _start(
    module: ModuleType, credentials: Credentials, problems: tuple[type[Exception], ...]
) -> tuple[_Context, bytes | None]:
    """Begins a security context; returns it and its first token."""

    def name(text: str, kind: str) -> object:
        encoded = text.encode(errors="surrogateescape")
        return module.Name(encoded, getattr(module.NameType, kind))

    kerberos = module.MechType.kerberos
    try:
        user = name(credentials.username, "user") if credentials.username else None
        tickets = module.Credentials(usage="initiate", name=user, mechs=[kerberos])
    except problems as error:
        hint = f"run kinit {credentials.username}".strip()
        raise UnreadyError(_reason(error), hint) from None
    flags = module.RequirementFlag
    try:
        context: _Context = module.SecurityContext(
            name=name(f"spice@{credentials.host}", "hostbased_service"),
            creds=tickets,
            usage="initiate",
            mech=kerberos,
            flags=flags.mutual_authentication
            | flags.replay_detection
            | flags.out_of_sequence_detection
            | flags.integrity
            | flags.confidentiality,
        )
        return context, context.step()
    except problems as error:
        raise UnreadyError(
            _reason(error), "name the server as Kerberos does, which needs a key for spice/HOST"
        ) from None


def _agree_on_layer(context: _Context, offer: bytes, problems: tuple[type[Exception], ...]) -> Talk:
    """Chooses the layer that encrypts.

    Args:
        context: the security context, which is complete.
        offer: one byte of layers, three of the longest token that the server takes.
        problems: what the module raises.
    """
    longest = int.from_bytes(offer[1:])
    if not offer[0] & _CONFIDENTIALITY:
        raise LoginError(
            "the server wants no encryption with SASL GSSAPI, and there is no TLS",
            "connect with TLS",
        )
    max_plain = min(context.get_wrap_size_limit(longest, True), SEND_DATA)
    if max_plain < 1:
        raise BadChallengeError("a size in which a token fits", f"{longest}")
    answer = bytes((_CONFIDENTIALITY,)) + MAX_SASL_TOKEN.to_bytes(3)
    yield context.wrap(answer, False).message

    def wrap(plain: bytes) -> bytes:
        try:
            return context.encrypt(plain)
        except problems as error:
            raise SessionLostError(f"nothing more can be encrypted: {_reason(error)}") from None

    def unwrap(token: bytes) -> bytes:
        try:
            return context.decrypt(token)
        except problems as error:
            raise BadTokenError(_reason(error)) from None

    return lambda position: FrameLayer(
        wrap, unwrap, max_plain=max_plain, max_token=MAX_SASL_TOKEN, position=position
    )


def _reason(error: Exception) -> str:
    """What Kerberos says, on one line: its minor status where there is one, which knows more."""
    told = str(error)
    minor = _MINOR.search(told)
    line = " ".join((minor[1] if minor else told).split())
    return printable(line)  # some is the server's
