"""Links one channel: connects, shakes hands, logs in."""

from __future__ import annotations

from collections.abc import Sequence

from spicebridge.channel import Channel
from spicebridge.errors import ConnectError, ProtocolError, SpicebridgeError
from spicebridge.protocol.dialogue import Exchange
from spicebridge.protocol.link import LinkRequest, link_client
from spicebridge.protocol.login import ClientLogin
from spicebridge.transport.address import Address
from spicebridge.transport.connect import connect, time_limit
from spicebridge.transport.stream import Stream


async def link(address: Address, request: LinkRequest, logins: Sequence[ClientLogin]) -> Channel:
    """Links a channel.

    Raises:
        ConnectError: the server cannot be reached, or falls silent.
        ProtocolError, LoginError, ChannelNotFoundError, ChannelBusyError, LinkRefusedError: see
            `link_client`.

    When cancelled, nothing stays open.
    """
    stream = await connect(address)
    try:
        exchange = Exchange(link_client(request, logins))
        async with time_limit(f"linking {request.name} at {address}"):
            while not exchange.done:
                await stream.write_all([memoryview(exchange.data_to_send())])
                exchange.receive_data(await _read(stream, exchange.needed))
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


async def _read(stream: Stream, count: int) -> bytes:
    """Reads up to `count` bytes, at least one."""
    buffer = bytearray(count)
    if not (received := await stream.read_into(memoryview(buffer))):
        raise ProtocolError(
            "SpiceLinkReply",
            0,
            f"{count} bytes",
            "a closed connection",
            "check that the port is that of a SPICE server",
        )
    return bytes(buffer[:received])
