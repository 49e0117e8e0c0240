"""The SASL mechanisms with a password, or with none: SCRAM, PLAIN, EXTERNAL.

A mechanism is a generator (`Talk`): it yields its messages for the server, is sent the server's,
and returns when it is content with what it has heard. Its first message is made before the server
knows that the mechanism was chosen, so that it can still say that it lacks something.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Final

from spicebridge.errors import LoginError
from spicebridge.protocol.constants import MAX_SCRAM_MESSAGE, SCRAM_ITERATIONS
from spicebridge.protocol.security_layer import SecurityLayer

MakeLayer = Callable[[int], SecurityLayer]
"""Makes the layer that was agreed on, given the bytes that the server has sent before it."""

Talk = Generator[bytes | None, bytes | None, MakeLayer | None]
"""What a client says to a server in a mechanism; None is no message, and not an empty one."""

_ITERATIONS = re.compile(r",i=([0-9]{1,19})(?:,|$)", re.ASCII)
_WHO: Final = "spice://USER@HOST:PORT"
_WITH: Final = "--password-file FILE"


@dataclass(frozen=True)
class Credentials:
    """What a client has to log in with, and where.

    Attributes:
        username: empty where the user gave none.
        password: empty where the user gave none.
        confidential: whether nobody else reads the connection.
        host: the server's name.
        forced: whether the user asked for this very mechanism.
    """

    username: str
    password: str = field(repr=False)
    confidential: bool
    host: str
    forced: bool = False


class UnreadyError(Exception):
    """A mechanism cannot begin with these credentials.

    Args:
        reason: what is missing.
        hint: what the user can do.
        by_password: whether a password is all that is missing.
    """

    def __init__(self, reason: str, hint: str, *, by_password: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.by_password = by_password


class BadChallengeError(Exception):
    """The server's message breaks the rules of the mechanism.

    Args:
        expected: what the rules ask for.
        got: what was there.
    """

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got


def _needs_both(credentials: Credentials) -> None:
    """Raises `UnreadyError` unless there are a username and a password."""
    missing = {"username": credentials.username, "password": credentials.password}
    options = {"username": _WHO, "password": _WITH}
    lacks = [what for what, given in missing.items() if not given]
    if lacks:
        raise UnreadyError(
            f"it needs a {' and a '.join(lacks)}",
            f"give {' and '.join(options[each] for each in lacks)}",
            by_password=lacks == ["password"],
        )


# SCRAM


def scram(name: str, credentials: Credentials) -> Talk:
    """SCRAM (RFC 5802, RFC 7677): both sides prove that they know the password, and say it not.

    Args:
        name: with the hash, as in ``SCRAM-SHA-256``.
        credentials: username and password.

    Raises:
        UnreadyError: one of them is missing, or has characters that SCRAM forbids.
        BadChallengeError: the server's message is none, its nonce is not ours continued, or it
            has us hash too often, or too few times to keep the password from who guesses.
        LoginError: the server refused us, or could not prove that it knows the password.
    """
    # here, as it would cost the start of every command some 30 ms
    from scramp import ScramClient, ScramException

    _needs_both(credentials)
    try:
        client = ScramClient([name], credentials.username, credentials.password)
    except ScramException as error:  # RFC 4013 forbids some characters
        raise UnreadyError(
            f"the username or the password is not for it: {error.args[0]}",
            "change them on the server",
        ) from None
    server_first = _scram_text((yield client.get_client_first().encode()), name)
    _check_iterations(server_first)
    try:
        client.set_server_first(server_first)
    except ScramException as error:
        raise BadChallengeError("a server-first-message (RFC 5802)", str(error.args[0])) from None
    server_final = yield client.get_client_final().encode()
    unproven = LoginError(
        f"the server could not prove in SASL {name} that it knows the password",
        "it may not be the server that it seems to be: check the address",
    )
    if server_final is None:
        raise unproven
    try:
        client.set_server_final(_scram_text(server_final, name))
    except ScramException:
        raise unproven from None
    return None


def _scram_text(message: bytes | None, name: str) -> str:
    if not message or len(message) > MAX_SCRAM_MESSAGE:
        raise BadChallengeError(
            f"1 to {MAX_SCRAM_MESSAGE} bytes of SCRAM", f"{len(message or b'')} bytes"
        )
    try:
        text = message.decode()
    except UnicodeDecodeError:
        raise BadChallengeError("UTF-8", "other bytes") from None
    if text.startswith("e="):  # server-error, RFC 5802, section 7
        raise LoginError(
            f"the server refused the login with SASL {name}: {text[2:60]!a}",
            f"check the username and the password ({_WHO}, {_WITH})",
            by_password=True,
        )
    return text


def _check_iterations(server_first: str) -> None:
    """Bounds the work before it is done; scramp refuses what has no count, or more than one."""
    found = _ITERATIONS.search(server_first)
    if found and int(found[1]) not in SCRAM_ITERATIONS:
        raise BadChallengeError(
            f"{SCRAM_ITERATIONS.start} to {SCRAM_ITERATIONS.stop - 1} iterations of the hash",
            found[1],
        )


# PLAIN and EXTERNAL


def plain(credentials: Credentials) -> Talk:
    """PLAIN (RFC 4616): the server is told the password, so nobody else may listen.

    Raises:
        UnreadyError: username or password is missing, or has a NUL, or others can listen.
    """
    if not credentials.confidential:
        raise UnreadyError("it would send the password in the clear", "connect with TLS")
    _needs_both(credentials)
    if "\0" in credentials.username + credentials.password:
        raise UnreadyError("it cannot send a NUL", "change the password on the server")
    # as with tickets: bytes that are no UTF-8 stay what they are
    who, what = (
        each.encode(errors="surrogateescape")
        for each in (credentials.username, credentials.password)
    )
    yield b"\0" + who + b"\0" + what
    return None


def external(credentials: Credentials) -> Talk:
    """EXTERNAL (RFC 4422, appendix A): the server knows us from TLS; we may say who we want to be.

    Raises:
        UnreadyError: there is no TLS, or a password that the user wants to be used instead.
    """
    if not credentials.confidential:
        raise UnreadyError("it needs TLS", "connect with TLS")
    if not credentials.forced and (credentials.username or credentials.password):
        raise UnreadyError("it is for logins without a password", "give --sasl-mechanism EXTERNAL")
    yield credentials.username.encode(errors="surrogateescape")
    return None
