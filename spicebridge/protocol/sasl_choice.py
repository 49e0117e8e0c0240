"""Which SASL mechanism a client uses.

The strongest that the server offers and that can begin: GSSAPI, for which there must be a ticket
(of the user that was named, if one was); SCRAM, and PLAIN where nobody can listen, for which there
must be a username and a password; EXTERNAL, where neither was given. Whoever wants another one
names it. Mechanisms that protect nothing any more are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from spicebridge.errors import LoginError, UsageError
from spicebridge.protocol.sasl_gssapi import gssapi, load_gssapi
from spicebridge.protocol.sasl_mechanisms import (
    Credentials,
    Talk,
    UnreadyError,
    external,
    plain,
    scram,
)

_MISTYPED: Final = "check the username and the password (spice://USER@HOST:PORT, --password-file)"

WITHOUT_TLS: Final = "connect with TLS: without it, QEMU offers only mechanisms that encrypt"
"""What to do about a server on a plain connection that offers nothing of use."""


@dataclass(frozen=True)
class Mechanism:
    """A mechanism that we use.

    Attributes:
        name: as on the wire.
        talk: what it says.
        refused: what to do when the server says no.
        by_password: whether the server knows us by a password.
    """

    name: str
    talk: Callable[[Credentials], Talk]
    refused: str
    by_password: bool = False


_SCRAMS: Final = ("SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1")

MECHANISMS: Final = {
    mechanism.name: mechanism
    for mechanism in (
        Mechanism("GSSAPI", gssapi, "check whose ticket it is (klist), and the server's keytab"),
        *(Mechanism(name, partial(scram, name), _MISTYPED, by_password=True) for name in _SCRAMS),
        Mechanism("PLAIN", plain, _MISTYPED, by_password=True),
        Mechanism("EXTERNAL", external, "check the client's certificate"),
    )
}
"""The mechanisms that we use, the strongest first."""

_REFUSED: Final = {
    "DIGEST-MD5": "obsolete, RFC 6331",
    "CRAM-MD5": "obsolete, and proves nothing of the server",
    "LOGIN": "obsolete, PLAIN is the same",
    "NTLM": "obsolete",
    "ANONYMOUS": "it lets everybody in",
}


def check_mechanism(name: str) -> str:
    """The name of a mechanism that the user asks for, as on the wire.

    Raises:
        UsageError: we do not know it, or cannot use it here.
    """
    wanted = name.upper()
    if wanted not in MECHANISMS:
        raise UsageError(
            f"SASL mechanism {name!r} is not used: {_why_not(wanted)}",
            f"--sasl-mechanism takes {', '.join(MECHANISMS)}",
        )
    if wanted == "GSSAPI":
        try:
            load_gssapi()
        except UnreadyError as error:
            raise UsageError(f"SASL mechanism {wanted}: {error.reason}", error.hint) from None
    return wanted


def _why_not(name: str) -> str:
    if name.endswith("-PLUS"):
        return "it binds to TLS, which spicebridge does not do"
    return _REFUSED.get(name, "unknown to spicebridge")


def begin(
    offered: Sequence[str], credentials: Credentials, forced: str
) -> tuple[Mechanism, Talk, bytes | None]:
    """Chooses a mechanism and lets it make its first message.

    Args:
        offered: by the server.
        credentials: ours.
        forced: the only one to use; empty for the strongest.

    Raises:
        LoginError: none can be used; says of each why.
    """
    if forced and forced not in offered:
        raise LoginError(
            f"the server does not offer SASL {forced}, only {', '.join(offered) or 'nothing'}",
            "--sasl-mechanism with one of these, or without it the strongest"
            if offered or credentials.confidential
            else WITHOUT_TLS,
        )
    obstacles: dict[str, list[str]] = {}
    hints: list[str] = []
    by_password = False
    for mechanism in MECHANISMS.values():
        if mechanism.name not in offered or forced not in ("", mechanism.name):
            continue
        talk = mechanism.talk(credentials)
        try:
            return mechanism, talk, next(talk)
        except UnreadyError as error:
            obstacles.setdefault(error.reason, []).append(mechanism.name)
            hints += [error.hint] if error.hint not in hints else []
            by_password = by_password or error.by_password
    for name in offered:
        if name not in MECHANISMS and not forced:
            obstacles.setdefault(_why_not(name), []).append(name)
    if not credentials.confidential and (credentials.password or not hints):
        hints.append(WITHOUT_TLS)
    elif not hints:
        hints.append("have the server offer SCRAM-SHA-256 (mech_list in its SASL configuration)")
    told = [f"{', '.join(names)} ({reason})" for reason, names in obstacles.items()]
    raise LoginError(
        "no SASL mechanism can be used of those that the server offers: "
        + (", ".join(told) or "there are none"),
        " or ".join(hints),
        by_password=by_password,
    )
