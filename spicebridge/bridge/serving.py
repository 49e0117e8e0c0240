"""Runs the bridges of a server: opens the local ends, listens, and serves until all are done."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import anyio

from spicebridge.bridge.report import Ready
from spicebridge.bridge.served import ServedBridge
from spicebridge.bridge.served_demux import ServedDemux
from spicebridge.bridge.spec import BridgeSpec
from spicebridge.bridge.supervisor import DRAIN_TIMEOUT
from spicebridge.client.session import ChannelInfo
from spicebridge.errors import UsageError, one_error
from spicebridge.server.endpoint import Offer, SpiceEndpoint
from spicebridge.server.limits import DEFAULT_LIMITS, ServerLimits
from spicebridge.transport.address import Address
from spicebridge.transport.listen import listen
from spicebridge.transport.target import Target

log = logging.getLogger(__name__)

_INSTANCES: Final = 256  # of a channel type: the id is one byte


Served = ServedBridge | ServedDemux


def offers(specs: Sequence[BridgeSpec], bridges: Sequence[Served]) -> list[Offer]:
    """The channels of an endpoint; a spec without an instance gets the lowest free one.

    Raises:
        UsageError: if two specs ask for the same channel or port name, or a name has wildcards.
    """
    taken = {
        (spec.channel.type, spec.channel.instance)
        for spec in specs
        if spec.channel.instance is not None
    }
    fixed = [spec for spec in specs if spec.channel.instance is not None]
    if len(taken) < len(fixed):
        raise UsageError("two channels have the same type and instance", "number them differently")
    names = [spec.channel.port for spec in specs if spec.channel.port is not None]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"port={name} is offered twice", "name them differently")
        if set("*?[") & set(name):
            raise UsageError(f"port={name}: an offered port has a name without wildcards")
    made: list[Offer] = []
    for spec, bridge in zip(specs, bridges, strict=True):
        number = spec.channel.instance
        if number is None:
            free = (n for n in range(_INSTANCES) if (spec.channel.type, n) not in taken)
            number = next(free, None)
            if number is None:
                raise UsageError(
                    f"{spec.name} is one too many", f"a type has {_INSTANCES} instances"
                )
            taken.add((spec.channel.type, number))
        made.append(Offer(spec.channel.type, number, bridge.serve))
    return made


async def serve_bridges(
    address: Address,
    specs: Sequence[BridgeSpec],
    *,
    password: str | None = None,
    tls: ssl.SSLContext | None = None,
    perm: int = 0o600,
    limits: ServerLimits = DEFAULT_LIMITS,
    stop: anyio.Event | None = None,
    ready: Ready | None = None,
) -> None:
    """Offers channels to SPICE clients, with local ends playing the guest.

    Args:
        address: where to listen; port 0 takes a free one.
        specs: one for each channel.
        password: the ticket; None to let everybody in.
        tls: our certificate and key, see `server_context`; None for plain connections.
        perm: mode of a Unix socket.
        limits: of what clients may cost.
        stop: set by the caller to drain and end. Cancelling ends at once.
        ready: called when everything exists, with where it listens.

    Raises:
        SpicebridgeError: what went wrong, see `errors`.
    """
    stop = stop or anyio.Event()
    bridges = [
        ServedDemux(spec, spec.demux) if spec.demux else ServedBridge(spec) for spec in specs
    ]
    offered = offers(specs, bridges)
    for bridge, offer in zip(bridges, offered, strict=True):
        bridge.status.channel = ChannelInfo(offer.type, offer.id)
    endpoint = SpiceEndpoint(offered, password, tls, limits)
    async with AsyncExitStack() as stack:
        for bridge, spec in zip(bridges, specs, strict=True):
            await stack.enter_async_context(spec.endpoint)
            stack.push_async_callback(bridge.aclose)
            bridge.status.end = spec.endpoint.name
        listener = stack.enter_context(await listen(address, perm))
        if password is None and not listener.is_local:
            log.warning(
                "whoever can reach %s may use these channels; --password-file keeps others out",
                listener.address,
            )
        with one_error():
            async with anyio.create_task_group() as tasks:
                for bridge in bridges:
                    await tasks.start(bridge.run)
                tasks.start_soon(endpoint.serve, listener)
                if ready is not None:
                    address = listener.address
                    here = Target(secure=address) if tls else Target(address)
                    ready(here, [bridge.status for bridge in bridges], None)
                await _until_done(bridges, stop)
                for bridge in bridges:
                    bridge.stop()
                with anyio.move_on_after(DRAIN_TIMEOUT):
                    await endpoint.idle()
                tasks.cancel_scope.cancel()


async def _until_done(bridges: Sequence[Served], stop: anyio.Event) -> None:
    """Waits until all bridges have nothing left to offer, or we are to stop."""
    async with anyio.create_task_group() as tasks:

        async def all_done() -> None:
            for bridge in bridges:
                await bridge.done.wait()
            tasks.cancel_scope.cancel()

        tasks.start_soon(all_done)
        await stop.wait()
        tasks.cancel_scope.cancel()
