"""Links one channel: connects, shakes hands, logs in."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from spicebridge.channel import Channel
from spicebridge.errors import ConnectError, ProtocolError, SpicebridgeError
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.link import LinkRequest, link_client
from spicebridge.protocol.login import ClientLogin
from spicebridge.transport.address import Address
from spicebridge.transport.connect import connect, time_limit
from spicebridge.transport.stream import Stream


async def link(
    address: Address,
    request: LinkRequest,
    logins: Sequence[ClientLogin],
    guard: anyio.CancelScope,
    timeout: float | None = None,
) -> Channel:
    """Links a channel.

    Args:
        address: of the server.
        request: the channel wanted.
        logins: ways to log in, the most wanted first.
        guard: the scope we run in; shielded from the moment that the server has answered. QEMU
            crashes if a port is closed between the ticket and PORT_INIT (libspice-server 0.15:
            on_connect uses the client that has gone), so who wants the channel no longer must
            wait for that and then close it.
        timeout: seconds that each step may take; None for `CONNECT_TIMEOUT`.

    Raises:
        ConnectError: the server cannot be reached, or falls silent.
        ProtocolError, LoginError, ChannelNotFoundError, ChannelBusyError, LinkRefusedError: see
            `link_client`.

    When cancelled, nothing stays open.
    """
    stream = await connect(address, timeout)
    try:
        exchange = Exchange(link_client(request, logins))
        position = 0
        async with time_limit(f"linking {request.name} at {address}", timeout):
            while not exchange.done:
                if to_send := exchange.data_to_send():
                    await stream.write_all([memoryview(to_send)])
                received = await _read(stream, exchange.needed, position)
                position += len(received)
                guard.shield = True
                exchange.receive_data(received)
        return Channel(stream, exchange.result)
    except SpicebridgeError as error:
        stream.close()
        raise error.at(address) from error.__cause__
    except OSError as error:
        stream.close()
        raise ConnectError(
            f"linking {request.name} at {address}: {error.strerror}",
            "check that the port is that of a SPICE server",
        ) from error
    except BaseException:
        stream.close()
        raise


async def _read(stream: Stream, count: int, position: int) -> bytes:
    """Reads up to `count` bytes, at least one; `position` says where they are in the stream."""
    buffer = bytearray(count)
    if not (received := await stream.read_into(memoryview(buffer))):
        raise ProtocolError(
            "link reply" if not position else "rest of the link",
            position,
            f"{count} bytes",
            "a closed connection",
            "check that the port is that of a SPICE server",
        )
    return bytes(buffer[:received])
