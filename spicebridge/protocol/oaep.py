"""RSA-OAEP with SHA-1 (RFC 8017, 7.1.1), as a client encrypts a ticket: with a public key alone.

`cryptography` can do it, too, but importing it costs the start of every bridge more than a tenth of
its time, and 8 MB. No secret key is at work here, and what the power is taken of is masked at
random, so that there is nothing to be learnt from how long it takes. A server decrypts with
`cryptography`, see `server_ticket`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha1
from typing import Final

from spicebridge.protocol.constants import TICKET_BYTES, TICKET_KEY_BITS

_HASH_BYTES: Final = 20
_LABEL_HASH: Final = sha1(b"", usedforsecurity=False).digest()  # there is no label

_HEAD: Final = bytes.fromhex("30819f300d06092a864886f70d010101050003818d0030818902818100")
"""DER before the modulus: a SubjectPublicKeyInfo of RSA, whose modulus has 1024 bits."""

_BETWEEN: Final = bytes.fromhex("0203")
"""DER between the modulus and the exponent, which has 3 bytes: it is 65537 everywhere, and the
link reply has no room for a longer one."""

_REST_BYTES: Final = len(_BETWEEN) + 3


@dataclass(frozen=True)
class PublicKey:
    """A public key of RSA.

    Attributes:
        modulus: of `TICKET_KEY_BITS` bits.
        exponent: as a rule 65537.
    """

    modulus: int
    exponent: int


def read_public_key(der: bytes) -> PublicKey:
    """Reads the key in a link reply.

    Raises:
        ValueError: it is none of RSA with `TICKET_KEY_BITS` bits, or none that encrypts.
    """
    end = len(_HEAD) + TICKET_BYTES
    modulus, rest = der[len(_HEAD) : end], der[end:]
    if not (der.startswith(_HEAD) and rest.startswith(_BETWEEN) and len(rest) == _REST_BYTES):
        raise ValueError("something else")
    key = PublicKey(int.from_bytes(modulus), int.from_bytes(rest.removeprefix(_BETWEEN)))
    whole = key.modulus.bit_length() == TICKET_KEY_BITS
    if not (whole and key.modulus % 2 and key.exponent % 2 and key.exponent > 1):
        raise ValueError("one that does not encrypt")
    return key


def encrypt(key: PublicKey, message: bytes) -> bytes:
    """Encrypts a message of at most 86 bytes; `TICKET_BYTES` come out."""
    padding = bytes(TICKET_BYTES - 2 * _HASH_BYTES - 2 - len(message))
    block = _LABEL_HASH + padding + b"\1" + message
    seed = os.urandom(_HASH_BYTES)
    masked_block = _xor(block, _mask(seed, len(block)))
    masked_seed = _xor(seed, _mask(masked_block, len(seed)))
    number = int.from_bytes(masked_seed + masked_block)  # less than the modulus: a byte shorter
    return pow(number, key.exponent, key.modulus).to_bytes(TICKET_BYTES)


def _mask(seed: bytes, size: int) -> bytes:
    """MGF1 (RFC 8017, B.2.1)."""
    count = -(-size // _HASH_BYTES)
    parts = (sha1(seed + n.to_bytes(4), usedforsecurity=False).digest() for n in range(count))
    return b"".join(parts)[:size]


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
