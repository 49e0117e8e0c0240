"""Runs bridges: opens the local ends, the session, and keeps all of them until they are done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import anyio
from anyio.abc import TaskStatus

from spicebridge.bridge.line import Line
from spicebridge.bridge.raw import RawBridge
from spicebridge.bridge.report import Ready
from spicebridge.bridge.retry import TAKEOVER_LIMIT
from spicebridge.bridge.sessions import Keep, Sessions
from spicebridge.bridge.spec import BridgeSpec
from spicebridge.client.session import ChannelInfo, Renew, Session
from spicebridge.errors import one_error
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
    idle_timeout: float | None = None,
    reconnect: float | None = None,
    takeover_limit: int = TAKEOVER_LIMIT,
    renew: Renew | None = None,
    stop: anyio.Event | None = None,
    ready: Ready | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Bridges channels of a SPICE server to local ends, until all are done.

    Local ends are opened before the server is asked: a mistake there must not throw another
    client's session out. They stay where they are while the server is away.

    Args:
        target: the server.
        specs: one for each bridge.
        timeout: seconds for each step of reaching the server, see `open_session`.
        idle_timeout: seconds of silence after which the session is lost, see `open_session`.
        reconnect: seconds between two tries, at most, while the server is away; None to end then.
        takeover_limit: how often another client may take the session over, see `Retry`.
        renew: gives another password, see `open_session`.
        stop: set by the caller to drain and end. Cancelling ends at once.
        ready: called when the local ends exist and the channels were found, with each session
            anew; or with none, when the server is away at the start and will be tried again.
        tell: called with a line on the server's state whenever that changes.

    Raises:
        SpicebridgeError: what went wrong, see `errors`; `SessionLostError` when the server ended
            the session.
    """
    stop = stop or anyio.Event()
    bridges = [_bridge(spec) for spec in specs]
    lines = [Line(comes_back=reconnect is not None) for _ in specs]

    def found(session: Session | None, channels: Sequence[ChannelInfo]) -> None:
        for bridge, channel in zip(bridges, channels, strict=False):
            bridge.status.channel = channel
        if ready is not None:
            server = target if session is None else session.target
            ready(server, [bridge.status for bridge in bridges], session)

    sessions = Sessions(
        target,
        [spec.channel for spec in specs],
        lines,
        keep=Keep(timeout, idle_timeout, reconnect, takeover_limit),
        renew=renew,
        found=found,
        tell=tell,
    )
    up = False
    closed = anyio.Event()

    async def keep_session(*, task_status: TaskStatus[None]) -> None:
        await sessions.run(tasks, task_status=task_status)
        closed.set()
        await drain()

    async def drain_when_stopped() -> None:
        await stop.wait()
        if up:
            await drain()
        tasks.cancel_scope.cancel()

    async def drain() -> None:
        for line in lines:
            line.close()
        for bridge in bridges:
            bridge.stop()
        await anyio.sleep(DRAIN_TIMEOUT)
        tasks.cancel_scope.cancel()

    with one_error():
        async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
            tasks.start_soon(drain_when_stopped)
            for bridge, spec in zip(bridges, specs, strict=True):
                await stack.enter_async_context(spec.endpoint)
                bridge.status.end = spec.endpoint.name
            await tasks.start(keep_session)
            up = True
            if sessions.away:
                found(None, ())
            async with anyio.create_task_group() as running:
                for bridge, line in zip(bridges, lines, strict=True):
                    running.start_soon(bridge.run, line)
            sessions.end()
            await closed.wait()
            tasks.cancel_scope.cancel()
    lost = sessions.failure
    if lost is not None and not stop.is_set() and not all(bridge.complete for bridge in bridges):
        raise lost
    for bridge in bridges:
        if bridge.failure is not None:
            raise bridge.failure


def _bridge(spec: BridgeSpec) -> RawBridge | DemuxBridge:
    if spec.demux is None:
        return RawBridge(spec)
    from spicebridge.bridge.demux import DemuxBridge  # here, as raw bridges would start later

    return DemuxBridge(spec, spec.demux)
