"""What a certificate says: its subject, its key, and how long it is valid."""

from __future__ import annotations

import hashlib
import warnings
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from spicebridge.errors import TlsError
from spicebridge.transport.subject import SHORT_NAMES, Subject, format_subject


def subject_of(certificate: bytes) -> Subject:
    """The subject of a certificate in DER, in its order.

    Attributes of one relative name are one here: ``("CN+UID", "a+b")``.

    Raises:
        TlsError: it cannot be read.
    """
    try:
        names = _load(certificate).subject.rdns
    except ValueError as error:
        raise _unreadable() from error
    return tuple(("+".join(map(_short, name)), "+".join(map(_value, name))) for name in names)


def _short(attribute: x509.NameAttribute[str | bytes]) -> str:
    number = attribute.oid.dotted_string
    return SHORT_NAMES.get(number, number)


def _value(attribute: x509.NameAttribute[str | bytes]) -> str:
    value = attribute.value
    return value if isinstance(value, str) else f"#{value.hex()}"  # as RFC 4514 has what is no text


def key_digest(certificate: bytes) -> bytes:
    """The SHA-256 of a certificate's public key (SubjectPublicKeyInfo in DER), 32 bytes.

    Raises:
        TlsError: it cannot be read.
    """
    try:
        key = _load(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _unreadable() from error
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).digest()


def describe_certificate(certificate: bytes) -> str:
    """A certificate's subject and how long it is valid: ``CN=node, 364 days left``."""
    try:
        left = _load(certificate).not_valid_after_utc - datetime.now(UTC)
        return f"{format_subject(subject_of(certificate))}, {left.days} days left"
    except (ValueError, TlsError):  # OpenSSL, which has believed it, is less strict
        return "an unreadable subject"


def _load(certificate: bytes) -> x509.Certificate:
    """A certificate from DER; raises ValueError for none."""
    with warnings.catch_warnings():  # such as of an odd serial number, which is not our business
        warnings.simplefilter("ignore")
        try:
            return x509.load_der_x509_certificate(certificate)
        except x509.InvalidVersion as error:  # which is none of the others
            raise ValueError("an unknown version") from error


def _unreadable() -> TlsError:
    return TlsError("the server's certificate cannot be read")
