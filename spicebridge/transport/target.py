"""A SPICE server as users describe it: where it is, and what it takes to get in."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from spicebridge.errors import UsageError
from spicebridge.transport.address import ServerAddress

if TYPE_CHECKING:
    from spicebridge.transport.proxy_address import ProxyAddress


@dataclass(frozen=True)
class Trust:
    """What makes us believe that a server on TLS is the one that we want.

    Attributes:
        ca: certificates of authorities in PEM, instead of those of `ca_file`.
        ca_file: a file of them; empty for ~/.spicec/spice_truststore.pem where that exists, else
            the system's.
        host_subject: the subject that the certificate must have, instead of the host's name:
            ``C=…,O=…,CN=…``, see `subject`.
        pinned_key: ``sha256//`` and the base64 of the digest of the server's public key (DER,
            SubjectPublicKeyInfo), as curl's --pinnedpubkey has it; stands for authorities and name.
        ciphers: of TLS 1.2, as openssl-ciphers(1) writes them; empty for OpenSSL's own choice.
        insecure: whether any certificate will do.
    """

    ca: str = ""
    ca_file: str = ""
    host_subject: str = ""
    pinned_key: str = ""
    ciphers: str = ""
    insecure: bool = False


@dataclass(frozen=True)
class Target:
    """A SPICE server and how to get in.

    Attributes:
        plain: where it takes plain connections; None if it does not.
        secure: where it takes TLS.
        secure_channels: types of the channels that are linked with TLS only; all of them where
            there is no plain address.
        trust: for TLS.
        proxy: through which to go.
        username: for SASL.
        password: the ticket, or SASL's; empty where the server asks for none.
        sasl_mechanism: the one to use; empty for the strongest that the server offers.

    Raises:
        UsageError: TLS is asked for, and there is no address for it.
    """

    plain: ServerAddress | None = None
    secure: ServerAddress | None = None
    secure_channels: frozenset[int] = frozenset()
    trust: Trust = Trust()
    proxy: ProxyAddress | None = None
    username: str = ""
    password: str = field(default="", repr=False)
    sasl_mechanism: str = ""

    def __post_init__(self) -> None:
        if self.secure is None and (self.plain is None or self.secure_channels):
            raise UsageError(
                f"{self.plain or 'the server'} is to be reached with TLS, and has no port for it",
                "name it: spice://HOST?tls-port=PORT",
            )

    def __str__(self) -> str:
        return str(self.plain or self.secure)

    @property
    def identities(self) -> frozenset[str]:
        """What tells its addresses from those of other servers: a proxy may stand before many, and
        what is in it need not be shown."""
        through = f"{self.proxy.scheme}://{self.proxy.host}:{self.proxy.port}" if self.proxy else ""
        found = (each for each in (self.plain, self.secure) if each is not None)
        return frozenset(sha256(f"{through} {each!r}".encode()).hexdigest() for each in found)

    def needs_tls(self, channel_type: int) -> bool:
        """Whether channels of this type are linked with TLS from the start."""
        return self.plain is None or channel_type in self.secure_channels

    def address(self, *, secure: bool) -> ServerAddress:
        """Where it takes TLS, or plain connections.

        Raises:
            UsageError: it does not.
        """
        address = self.secure if secure else self.plain
        if address is None:
            raise UsageError(f"{self} has no {'TLS' if secure else 'plain'} port", "name it")
        return address
