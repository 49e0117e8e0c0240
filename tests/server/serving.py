"""An endpoint in this process, on a socket of its own, and guests for its channels."""

from __future__ import annotations

import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from spicebridge.channel import Channel
from spicebridge.errors import one_error
from spicebridge.protocol.constants import Msg
from spicebridge.protocol.events import PortInit
from spicebridge.protocol.messages import encode_port_init
from spicebridge.server.endpoint import Offer, SpiceEndpoint
from spicebridge.server.limits import DEFAULT_LIMITS, ServerLimits
from spicebridge.transport.address import Address, TcpAddress, UnixAddress
from spicebridge.transport.listen import listen
from spicebridge.transport.steps import step
from tests.channel.hasty import make_hasty
from tests.conftest import PATIENCE
from tests.protocol.wire import KEY

Guest = Callable[[Channel], Awaitable[None]]


def make_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No new key for every server, and no moment for guests before a channel is left."""
    monkeypatch.setattr("spicebridge.server.endpoint.new_ticket_key", lambda: KEY)
    make_hasty(monkeypatch)


def make_impatient(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.1) -> None:
    """Who says nothing is given up at once."""
    monkeypatch.setattr("spicebridge.transport.steps.CONNECT_TIMEOUT", seconds)
    function = inspect.unwrap(step)
    if getattr(function, "__defaults__", None):
        monkeypatch.setattr(function, "__defaults__", (seconds,))


def somewhere(kind: str, folder: Path) -> Address:
    """An address to listen on."""
    return TcpAddress("127.0.0.1", 0) if kind == "tcp" else UnixAddress(str(folder / "spice"))


async def echo(channel: Channel) -> None:
    """A guest that sends back what it gets."""
    while (items := await channel.receive()) is not None:
        for item in items:
            if isinstance(item, memoryview):
                await channel.send(item)


def port(name: str, guest: Guest = echo, *, opened: bool = True) -> Guest:
    """A guest behind a port, which tells its name first."""

    async def serve(channel: Channel) -> None:
        await channel.send_message(Msg.PORT_INIT, encode_port_init(PortInit(name, opened)))
        await guest(channel)

    return serve


async def deaf(channel: Channel) -> None:
    """A guest that takes nothing."""
    await anyio.sleep_forever()


@asynccontextmanager
async def serving(
    address: Address,
    offers: Sequence[Offer],
    password: str | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    limits: ServerLimits = DEFAULT_LIMITS,
) -> AsyncIterator[Address]:
    """Serves these offers; gives the address."""
    endpoint = SpiceEndpoint(offers, password, tls, limits)
    with one_error(), anyio.fail_after(PATIENCE), await listen(address) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(endpoint.serve, listener)
            yield listener.address
            tasks.cancel_scope.cancel()


async def read_until(channel: Channel, count: int) -> bytes:
    """Reads so many bytes, or to the end."""
    data = b""
    while len(data) < count and (more := await channel.read()):
        data += more
    return data
