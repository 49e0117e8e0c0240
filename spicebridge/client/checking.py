"""What can be seen to be wrong with a target before anybody is asked."""

from __future__ import annotations

from spicebridge.client.credentials import logins
from spicebridge.transport.target import Target


def check_target(target: Target) -> None:
    """Finds the mistakes that a connection would meet later; reads files.

    Raises:
        UsageError: a file of authorities, a pin, a subject, ciphers, a SASL mechanism or a password
            cannot be used.
    """
    logins(target, secure=target.plain is None)
    if target.secure is not None:
        # here, as it would cost the start of every other command some 20 ms
        from spicebridge.transport.trust import tls_context

        tls_context(target.trust)
