"""Runs bridges: opens the local ends, the session, and keeps all of them until they are done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import anyio

from spicebridge.bridge.raw import RawBridge
from spicebridge.bridge.report import Ready
from spicebridge.bridge.resolve import resolve
from spicebridge.bridge.spec import BridgeSpec
from spicebridge.client.session import ChannelInfo, Renew, open_session
from spicebridge.errors import SpicebridgeError, UsageError, one_error
from spicebridge.transport.target import Target

if TYPE_CHECKING:
    from spicebridge.bridge.demux import DemuxBridge

DRAIN_TIMEOUT: Final = 5.0
"""Seconds that what is on its way has to arrive, once the bridges are stopped."""


async def run_bridges(
    target: Target,
    specs: Sequence[BridgeSpec],
    *,
    timeout: float | None = None,
    renew: Renew | None = None,
    stop: anyio.Event | None = None,
    ready: Ready | None = None,
) -> None:
    """Bridges channels of a SPICE server to local ends, until all are done.

    Local ends are opened before the server is asked: a mistake there must not throw another
    client's session out.

    Args:
        target: the server.
        specs: one for each bridge.
        timeout: seconds for each step of reaching the server, see `open_session`.
        renew: gives another password, see `open_session`.
        stop: set by the caller to drain and end. Cancelling ends at once.
        ready: called when the local ends exist and the channels were found.

    Raises:
        SpicebridgeError: what went wrong, see `errors`; `SessionLostError` when the server ended
            the session.
    """
    stop = stop or anyio.Event()
    bridges = [_bridge(spec) for spec in specs]
    up = False
    failure: SpicebridgeError | None = None

    async def drain_when(event: anyio.Event) -> None:
        await event.wait()
        if up:
            for bridge in bridges:
                bridge.stop()
            await anyio.sleep(DRAIN_TIMEOUT)
        tasks.cancel_scope.cancel()

    with one_error():
        async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
            tasks.start_soon(drain_when, stop)
            for bridge, spec in zip(bridges, specs, strict=True):
                await stack.enter_async_context(spec.endpoint)
                bridge.status.end = spec.endpoint.name
            session = await stack.enter_async_context(
                open_session(target, timeout=timeout, renew=renew)
            )
            channels = [await resolve(session, spec.channel) for spec in specs]
            _refuse_twice(channels)
            for bridge, channel in zip(bridges, channels, strict=True):
                bridge.status.channel = channel
            up = True
            if ready is not None:
                ready(target, [bridge.status for bridge in bridges], session)
            tasks.start_soon(drain_when, session.lost)
            async with anyio.create_task_group() as running:
                for bridge, channel in zip(bridges, channels, strict=True):
                    running.start_soon(bridge.run, session, channel)
            failure = session.failure
            tasks.cancel_scope.cancel()
    if failure and not stop.is_set() and not all(bridge.complete for bridge in bridges):
        raise failure
    for bridge in bridges:
        if bridge.failure is not None:
            raise bridge.failure


def _bridge(spec: BridgeSpec) -> RawBridge | DemuxBridge:
    if spec.demux is None:
        return RawBridge(spec)
    from spicebridge.bridge.demux import DemuxBridge  # here, as raw bridges would start later

    return DemuxBridge(spec, spec.demux)


def _refuse_twice(channels: Sequence[ChannelInfo]) -> None:
    for channel in channels:
        if channels.count(channel) > 1:
            raise UsageError(
                f"{channel.name} is asked for twice", "one client can link a channel only once"
            )
