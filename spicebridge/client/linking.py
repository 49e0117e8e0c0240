"""Links one channel: dials, shakes hands, logs in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import anyio
import anyio.to_thread

from spicebridge.channel import Channel
from spicebridge.client.credentials import logins
from spicebridge.errors import ConnectError, LinkRefusedError, ProtocolError, SpicebridgeError
from spicebridge.protocol.constants import CommonCap, LinkErr
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.link import Linked, LinkRequest, link_client
from spicebridge.protocol.login import ClientLogin
from spicebridge.transport.dial import Dialer
from spicebridge.transport.steps import step, tell
from spicebridge.transport.wire import Wire

_CHECK: Final = (
    "check that the port is that of a SPICE server, and write spice+tls://HOST:PORT if it is for "
    "TLS"
)


async def link(dialer: Dialer, request: LinkRequest, guard: anyio.CancelScope) -> Channel:
    """Links a channel: without TLS where the target allows it and the server does not refuse it.

    Args:
        dialer: for the server.
        request: the channel wanted.
        guard: the scope we run in; shielded from the moment that the server has answered. QEMU
            crashes if a port is closed between the ticket and PORT_INIT (libspice-server 0.15:
            on_connect uses the client that has gone), so who wants the channel no longer must
            wait for that and then close it.

    Raises:
        ConnectError: the server cannot be reached, or falls silent.
        TlsError: the server does not speak TLS, or is not to be trusted.
        ProtocolError, LoginError, ChannelNotFoundError, ChannelBusyError, LinkRefusedError: see
            `link_client`.

    When cancelled, nothing stays open.
    """
    target = dialer.target
    secure = target.needs_tls(request.channel_type)
    try:
        return await _link(dialer, request, guard, secure=secure)
    except LinkRefusedError as error:
        if error.error != LinkErr.NEED_SECURED or secure or target.secure is None:
            raise
    guard.shield = False
    tell(f"linking {request.name} at {target.plain}", ["refused: the server wants TLS for it"])
    return await _link(dialer, request, guard, secure=True)


async def _link(
    dialer: Dialer, request: LinkRequest, guard: anyio.CancelScope, *, secure: bool
) -> Channel:
    address = dialer.target.address(secure=secure)
    ways = logins(dialer.target, secure=secure)
    wire = await dialer.dial(address, secure=secure)
    try:
        exchange = Exchange(link_client(request, ways))
        async with step(f"linking {request.name} at {address}", dialer.timeout) as found:
            await _converse(wire, exchange, guard, ways)
            found += _agreed(exchange.result)
        if (layer := exchange.result.layer) is not None:
            from spicebridge.transport.sasl_layer import SaslWire

            wire = SaslWire(wire, layer)
        return Channel(wire, exchange.result)
    except SpicebridgeError as error:
        wire.close()
        raise error.at(address) from error.__cause__
    except OSError as error:
        wire.close()
        raise ConnectError(
            f"linking {request.name} at {address}: {error.strerror}",
            _CHECK,
        ) from error
    except BaseException:
        wire.close()
        raise


async def _converse(
    wire: Wire,
    exchange: Exchange[Linked],
    guard: anyio.CancelScope,
    ways: Iterable[ClientLogin],
) -> None:
    position = 0
    while not exchange.done:
        if to_send := exchange.data_to_send():
            await wire.write_all([memoryview(to_send)])
        try:
            received = await _read(wire, exchange.needed, position)
        except (ProtocolError, ConnectionError) as error:  # the server has closed the connection
            for way in ways:
                if (told := way.hung_up()) is not None:
                    raise told from error
            raise
        position += len(received)
        guard.shield = True
        if any(way.blocking for way in ways):
            await anyio.to_thread.run_sync(exchange.receive_data, received, abandon_on_cancel=True)
        else:
            exchange.receive_data(received)


async def _read(wire: Wire, count: int, position: int) -> bytes:
    """Reads up to `count` bytes, at least one; `position` says where they are in the stream."""
    buffer = bytearray(count)
    if not (received := await wire.read_into(memoryview(buffer))):
        raise ProtocolError(
            "link reply" if not position else "rest of the link",
            position,
            f"{count} bytes",
            "a closed connection",
            _CHECK,
        )
    return bytes(buffer[:received])


def _agreed(linked: Linked) -> list[str]:
    """What a doctor wants to know of a link."""
    return [
        "SPICE 2.2",
        f"login: {linked.login}",
        f"our capabilities: {_names(linked.request.common_caps)}",
        f"the server's: {_names(linked.common_caps)}",
    ]


def _names(caps: Iterable[int]) -> str:
    known = {cap.value: cap.name.lower().replace("_", "-") for cap in CommonCap}
    return ", ".join(known.get(cap, str(cap)) for cap in sorted(caps)) or "none"
