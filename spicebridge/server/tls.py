"""Who we are on TLS, as a server."""

from __future__ import annotations

import ssl
from pathlib import Path

from spicebridge.errors import UsageError


def server_context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """A server's context.

    Args:
        certificate: file with its certificate and those of authorities below the root, in PEM.
        key: file with its private key; None where that is in the same file.

    Raises:
        UsageError: they cannot be used.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could have us sign for ever
    for file in filter(None, (certificate, key)):
        try:
            file.read_bytes()  # `ssl` does not tell which of them it cannot read
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}", "check the file") from error
    try:
        # without a password of ours OpenSSL would ask a person on the terminal
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except ssl.SSLError as error:
        raise UsageError(
            f"{certificate} and {key or 'its own key'} are no certificate and its key in PEM",
            "give the certificate's own key, without a passphrase",
        ) from error
    return context
