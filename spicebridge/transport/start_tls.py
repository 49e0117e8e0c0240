"""Starts TLS as a client, and says in words why it failed."""

from __future__ import annotations

import ipaddress
import ssl
from typing import Final

from spicebridge.errors import TlsError
from spicebridge.transport.certificate import describe_certificate
from spicebridge.transport.steps import step
from spicebridge.transport.target import Trust
from spicebridge.transport.tls import TlsWire, reason_of
from spicebridge.transport.trust import check_certificate
from spicebridge.transport.wire import Wire

_EXPIRED: Final = {9, 10}  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED
_UNKNOWN_AUTHORITY: Final = {18, 19, 20, 21}  # X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT and on
_OTHER_NAME: Final = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


async def start_tls(
    inner: Wire,
    context: ssl.SSLContext,
    host: str,
    place: object,
    timeout: float | None,
    trust: Trust | None = None,
) -> TlsWire:
    """Starts TLS on a wire; it is closed if that fails.

    Args:
        inner: the wire, on which nothing was said yet.
        context: see `trust`.
        host: name or address of the server.
        place: the server, for messages.
        timeout: seconds that it may take.
        trust: what to check beyond what `context` does.

    Raises:
        ConnectError: it took too long.
        TlsError: the server does not speak TLS, or is not to be trusted.
    """
    try:
        async with step(f"starting TLS with {place}", timeout) as found:
            wire = TlsWire(inner, context, _server_name(host, context))
            await wire.handshake()
            der = wire.tls.getpeercert(binary_form=True) or b""
            if trust is not None:
                check_certificate(trust, der)
            cipher, _, bits = wire.tls.cipher() or ("no cipher", "", 0)
            found.append(f"{wire.tls.version()}, {cipher}, {bits} bits")
            found.append(f"certificate of {describe_certificate(der)}")
        return wire
    except ssl.SSLCertVerificationError as error:
        inner.close()
        raise TlsError(
            f"TLS with {place}: {error.verify_message.rstrip('.')}", _hint(error.verify_code)
        ) from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError) as error:
        inner.close()
        raise TlsError(
            f"TLS with {place}: the server closed the connection", "is that its TLS port?"
        ) from error
    except ssl.SSLError as error:
        inner.close()
        hint = "is that its TLS port?" if error.reason in _NO_TLS else ""
        raise TlsError(f"TLS with {place}: {reason_of(error)}", hint) from error
    except TlsError as error:
        inner.close()
        raise error.at(f"TLS with {place}") from error
    except BaseException:
        inner.close()
        raise


_NO_TLS: Final = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_MESSAGE"}


def _server_name(host: str, context: ssl.SSLContext) -> str | None:
    """What to ask the server for (RFC 6066, 3); None for what can be in no certificate.

    Raises:
        TlsError: a name is to be checked, and that is none.
    """
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        return host.partition("%")[0]
    try:
        if ":" in host or not host.encode("idna"):  # such as Proxmox' tickets, which stand for one
            raise UnicodeError
    except UnicodeError:
        if context.check_hostname:
            raise TlsError(
                f"{host!r} is no name that a certificate could have", "give its --host-subject"
            ) from None
        return None
    return host


def _hint(code: int) -> str:
    if code in _EXPIRED:
        return "renew the server's certificate, or check the clock"
    if code in _UNKNOWN_AUTHORITY:
        return "name the authority that signed its certificate with --ca-file"
    if code in _OTHER_NAME:
        return "use the name that its certificate is for, or give its --host-subject"
    return ""
