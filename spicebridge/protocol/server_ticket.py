"""The server's half of a login with a ticket: the key in its link reply, and what that decrypts.

Apart from ``login.py``, as a client does not need `cryptography`, see ``oaep.py``.
"""

from __future__ import annotations

import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from spicebridge.protocol.constants import TICKET_BYTES, TICKET_KEY_BITS, AuthMechanism
from spicebridge.protocol.dialogue import Dialogue
from spicebridge.protocol.login import encode_password


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
