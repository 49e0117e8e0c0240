"""Login mechanisms: what happens between the link reply and the link result, for both roles.

Here is the ticket (AUTH_SPICE): the password and a trailing NUL, encrypted with RSA-OAEP (SHA-1)
for the key in the link reply. SASL (AUTH_SASL) has a module of its own, ``sasl.py``.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from spicebridge.errors import LoginError, ProtocolError, UsageError
from spicebridge.protocol.constants import (
    MAX_PASSWORD_LENGTH,
    TICKET_BYTES,
    TICKET_KEY_BITS,
    AuthMechanism,
)
from spicebridge.protocol.dialogue import Dialogue
from spicebridge.protocol.security_layer import SecurityLayer

_PUBKEY_OFFSET = 20  # of the key in a link reply: 16 bytes of header, u32 error


def _oaep() -> padding.OAEP:
    # SHA-1 is what SPICE says; in OAEP it is not used for collision resistance.
    sha1 = hashes.SHA1()
    return padding.OAEP(mgf=padding.MGF1(algorithm=sha1), algorithm=sha1, label=None)


def new_ticket_key() -> rsa.RSAPrivateKey:
    """A key for a server's link replies. Takes tens of milliseconds of CPU."""
    return rsa.generate_private_key(public_exponent=65537, key_size=TICKET_KEY_BITS)


def ticket_pubkey(key: rsa.RSAPrivateKey) -> bytes:
    """The 162 bytes of DER that a link reply carries for this key."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


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
        blocking: whether its steps compute for long or ask other servers: an event loop should
            have them run in a thread.
    """

    mechanism: AuthMechanism
    blocking: bool

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
            key = load_der_public_key(pubkey)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ProtocolError(
                "SpiceLinkReply", _PUBKEY_OFFSET, "an RSA public key in DER", "something else"
            ) from error
        if not isinstance(key, rsa.RSAPublicKey) or key.key_size != TICKET_KEY_BITS:
            raise ProtocolError(
                "SpiceLinkReply",
                _PUBKEY_OFFSET,
                f"an RSA key of {TICKET_KEY_BITS} bits",
                f"{type(key).__name__} of {getattr(key, 'key_size', '?')}",
            )
        try:
            ticket = key.encrypt(self._password + b"\0", _oaep())
        except ValueError as error:
            raise ProtocolError(
                "SpiceLinkReply", _PUBKEY_OFFSET, "a key that encrypts", "one that does not"
            ) from error
        yield ticket
        return LoggedIn("ticket")

    def hung_up(self) -> LoginError | None:
        """Nothing: a wrong ticket is told by the link result."""
        return None


class ServerTicket:
    """Asks clients for a ticket.

    Args:
        key: the private half of the key in the link reply.
        password: the ticket, or None to let everybody in.

    Raises:
        UsageError: if it has more than `MAX_PASSWORD_LENGTH` bytes.
    """

    mechanism = AuthMechanism.SPICE

    def __init__(self, key: rsa.RSAPrivateKey, password: str | None) -> None:
        self._key = key
        self._password = None if password is None else encode_password(password)

    def steps(self) -> Dialogue[bool]:
        """Reads the encrypted ticket and compares it in constant time."""
        encrypted = yield TICKET_BYTES
        if self._password is None:
            return True
        try:
            ticket = self._key.decrypt(encrypted, _oaep())
        except ValueError:
            return False
        return hmac.compare_digest(ticket.partition(b"\0")[0], self._password)


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
