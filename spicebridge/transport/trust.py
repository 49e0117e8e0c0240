"""Whom we believe on TLS, and what a server's certificate is checked against.

As spice-gtk: the authorities of the connection file or of --ca-file, else of
~/.spicec/spice_truststore.pem where that exists, else the system's; then the host's name, or the
subject that was asked for. A pinned key stands for all of that.
"""

from __future__ import annotations

import base64
import hmac
import re
import ssl
from pathlib import Path
from typing import Final

from spicebridge.errors import TlsError, UsageError
from spicebridge.transport.certificate import key_digest, subject_of
from spicebridge.transport.subject import format_subject, matches, parse_subject
from spicebridge.transport.target import Trust

TRUSTSTORE: Final = Path("~/.spicec/spice_truststore.pem")
"""Where spice-gtk looks for authorities (spice-session.c, SPICE_SESSION_CA_FILE)."""

_PIN: Final = re.compile("sha256//(.+)")
_DIGEST_BYTES: Final = 32


def tls_context(trust: Trust) -> ssl.SSLContext:
    """A client's context; reads files, so call it off the event loop.

    Raises:
        UsageError: a file, the pin, the subject or the ciphers cannot be used.
    """
    context = _context(_authorities(trust))
    if trust.ciphers:
        try:
            context.set_ciphers(trust.ciphers)
        except ssl.SSLError as error:
            raise UsageError(
                f"TLS ciphers {trust.ciphers!r}: OpenSSL knows none of them",
                "see openssl-ciphers(1)",
            ) from error
    if trust.host_subject:
        parse_subject(trust.host_subject)  # refused before anybody is asked
    if trust.pinned_key:
        _pin(trust)
    if trust.host_subject or trust.pinned_key or trust.insecure:
        context.check_hostname = False
    if trust.pinned_key or trust.insecure:
        context.verify_mode = ssl.CERT_NONE
    return context


def proxy_context(trust: Trust) -> ssl.SSLContext:
    """A client's context for a proxy: the system's authorities and those of `trust` are believed.

    Raises:
        UsageError: see `tls_context`.
    """
    context = _context(None)
    if authorities := _authorities(trust):
        context.load_verify_locations(cadata=authorities)
    return context


def _context(authorities: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # `TlsWire` writes whenever it likes
    # Python 3.13 has become stricter than the certificates that people have made for SPICE by its
    # own manual, and takes a server's own certificate as its authority; the same on each Python
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _authorities(trust: Trust) -> str | None:
    """Certificates in PEM; None for the system's."""
    if trust.ca:
        text, source = trust.ca.encode("ascii", "ignore").decode(), "the connection file's ca"
    else:
        file = Path(trust.ca_file) if trust.ca_file else TRUSTSTORE.expanduser()
        source = f"--ca-file {file}" if trust.ca_file else str(file)
        try:
            text = file.read_text(encoding="ascii", errors="ignore")
        except OSError as error:
            if not trust.ca_file:
                return None
            raise UsageError(f"{source}: {error.strerror}", "check the file") from error
    try:
        # as a context's only ones: create_default_context takes no text for the system's
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(
            f"{source}: it holds no certificates in PEM", "export the authority's certificate"
        ) from error
    return text


def _pin(trust: Trust) -> bytes:
    match = _PIN.fullmatch(trust.pinned_key)
    try:
        digest = base64.b64decode(match[1], validate=True) if match else b""
    except ValueError:  # also for letters that are not ASCII's
        digest = b""
    if len(digest) != _DIGEST_BYTES:
        raise UsageError(
            f"{trust.pinned_key!r} is no pinned key",
            "write sha256//BASE64, the digest of the server's public key, as for curl",
        )
    return digest


def check_certificate(trust: Trust, der: bytes) -> None:
    """What `ssl` does not check itself: the subject and the pinned key.

    Args:
        trust: what is asked for.
        der: the server's certificate.

    Raises:
        TlsError: it has another subject or key.
    """
    if trust.pinned_key:
        digest = key_digest(der)
        if not hmac.compare_digest(digest, _pin(trust)):
            raise TlsError(
                f"its key is sha256//{base64.b64encode(digest).decode()}, not the pinned one",
                "if the server has a new key, ask its owner and pin that one",
            )
    if trust.host_subject and not trust.insecure:
        subject = subject_of(der)
        if not matches(parse_subject(trust.host_subject), subject):
            raise TlsError(
                f"its certificate is for {format_subject(subject)}, not for {trust.host_subject}",
                "check --host-subject, in which the order counts",
            )
