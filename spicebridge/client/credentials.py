"""Which logins a target allows on one link, the most wanted first."""

from __future__ import annotations

from spicebridge.protocol.constants import MAX_PASSWORD_LENGTH
from spicebridge.protocol.login import ClientLogin, ClientTicket
from spicebridge.protocol.sasl import ClientSasl
from spicebridge.transport.address import UnixAddress
from spicebridge.transport.target import Target


def logins(target: Target, *, secure: bool) -> list[ClientLogin]:
    """Ways to log in. A server that offers SASL wants it, so it comes before the ticket.

    Args:
        target: with a name and a password.
        secure: whether the link runs inside TLS.

    Raises:
        UsageError: the password is longer than a ticket may be, and there is no name for SASL; or
            the SASL mechanism is unknown.
    """
    address = target.address(secure=secure)
    sasl = ClientSasl(
        target.username,
        target.password,
        mechanism=target.sasl_mechanism,
        confidential=secure or isinstance(address, UnixAddress),
        host="localhost" if isinstance(address, UnixAddress) else address.host,
    )
    if target.sasl_mechanism:
        return [sasl]
    if target.username and len(target.password) > MAX_PASSWORD_LENGTH:  # can be no ticket
        return [sasl]
    return [sasl, ClientTicket(target.password)]
