"""Login mechanisms: what happens between the link reply and the link result, for both roles.

Here is the ticket (AUTH_SPICE): the password and a trailing NUL, encrypted with RSA-OAEP (SHA-1)
for the key in the link reply; here is the client's half of it, the server's is in
``server_ticket.py``. SASL (AUTH_SASL) has a module of its own, ``sasl.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Protocol

from spicebridge.errors import LoginError, ProtocolError, UsageError
from spicebridge.protocol.constants import (
    MAX_PASSWORD_LENGTH,
    TICKET_KEY_BITS,
    AuthMechanism,
)
from spicebridge.protocol.dialogue import Dialogue
from spicebridge.protocol.oaep import encrypt, read_public_key
from spicebridge.protocol.security_layer import SecurityLayer

_PUBKEY_OFFSET = 20  # of the key in a link reply: 16 bytes of header, u32 error


@dataclass(frozen=True)
class LoggedIn:
    """How a client has logged in.

    Attributes:
        name: of the login, for people: ``ticket``, ``SASL SCRAM-SHA-256``.
        layer: what all further bytes go through, the link result first; None where they do not.
    """

    name: str
    layer: SecurityLayer | None = None


class ClientLogin(Protocol):
    """One way for a client to log in, on one link.

    Attributes:
        mechanism: what it is called on the wire.
    """

    mechanism: AuthMechanism

    @property
    def blocking(self) -> bool:
        """Whether its next step may compute for long or ask other servers: an event loop should
        have it run in a thread, which costs a link some milliseconds."""
        ...

    def steps(self, pubkey: bytes, position: int) -> Dialogue[LoggedIn]:
        """What is said after the mechanism was chosen, up to but without the link result.

        Args:
            pubkey: the key in the link reply.
            position: bytes that the server has sent up to here.
        """
        ...

    def hung_up(self) -> LoginError | None:
        """What it means that the server has closed the connection now, in the middle of `steps`.

        A server of SASL refuses that way. None where it means nothing, or another login runs.
        """
        ...


class ServerLogin(Protocol):
    """One way for a server to let clients log in."""

    mechanism: AuthMechanism

    def steps(self) -> Dialogue[bool]:
        """The other side of `ClientLogin.steps`; returns whether the client may come in."""
        ...


def encode_password(password: str) -> bytes:
    """A password as bytes.

    Raises:
        UsageError: if it has more than `MAX_PASSWORD_LENGTH` of them.
    """
    # as in the environment and in file names: bytes that are no UTF-8 stay what they are
    encoded = password.encode(errors="surrogateescape")
    if len(encoded) > MAX_PASSWORD_LENGTH:
        raise UsageError(
            f"the password has {len(encoded)} bytes", f"SPICE takes {MAX_PASSWORD_LENGTH} at most"
        )
    return encoded


class ClientTicket:
    """Logs in with a ticket.

    Args:
        password: the ticket; empty where the server asks for none.

    Raises:
        UsageError: if it has more than `MAX_PASSWORD_LENGTH` bytes.
    """

    mechanism = AuthMechanism.SPICE
    blocking = False

    def __init__(self, password: str = "") -> None:
        self._password = encode_password(password)

    def steps(self, pubkey: bytes, position: int) -> Dialogue[LoggedIn]:
        """Sends the encrypted ticket, 128 bytes."""
        try:
            key = read_public_key(pubkey)
        except ValueError as error:
            raise ProtocolError(
                "SpiceLinkReply",
                _PUBKEY_OFFSET,
                f"an RSA public key of {TICKET_KEY_BITS} bits in DER",
                str(error),
            ) from error
        yield encrypt(key, self._password + b"\0")
        return LoggedIn("ticket")

    def hung_up(self) -> LoginError | None:
        """Nothing: a wrong ticket is told by the link result."""
        return None


_WORDS: Final = {AuthMechanism.SPICE: "a ticket", AuthMechanism.SASL: "SASL"}


def choose_login(logins: Iterable[ClientLogin], offered: AbstractSet[int]) -> ClientLogin:
    """The first of our logins that the server offers.

    Args:
        logins: ours, the most wanted first.
        offered: the common capabilities of the server; each mechanism is one of them.

    Raises:
        LoginError: if there is none.
    """
    wanted = []
    for login in logins:
        if login.mechanism in offered:
            return login
        wanted.append(login.mechanism)
    names = [_WORDS[mechanism] for mechanism in AuthMechanism if mechanism in offered]
    leave_out = wanted == [AuthMechanism.SASL] and AuthMechanism.SPICE in offered
    raise LoginError(
        f"the server offers no login with {' or '.join(_WORDS[each] for each in wanted)}, "
        f"only with {' or '.join(names) or 'nothing that we know'}",
        "leave out --sasl-mechanism" if leave_out else "allow logins with a ticket on the server",
    )
