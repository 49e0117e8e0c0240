"""A demultiplexed bridge on the client's side: one application for each stream of the guest."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Final

import anyio
from anyio.abc import TaskGroup

from spicebridge.bridge.line import Line
from spicebridge.bridge.report import BridgeStatus, StreamCount
from spicebridge.bridge.spec import BridgeSpec, Limits
from spicebridge.bridge.streams import Opener, Streams
from spicebridge.bridge.waiting import WaitingRoom
from spicebridge.channel import ChannelClosedError
from spicebridge.errors import (
    ChannelBusyError,
    ProtocolError,
    SessionLostError,
    SpicebridgeError,
    one_error,
)

log = logging.getLogger(__name__)

_PAUSE: Final = 1.0
"""Seconds before a channel that the server has closed is linked again."""


class DemuxBridge:
    """Gives every stream of a channel an application of its own.

    Args:
        spec: what is asked for; its endpoint is open.
        limits: of the streams.

    Attributes:
        status: what it is doing.
        failure: what was wrong with the channel's bytes, if that has ended it.
        complete: False; there is always more to come.
    """

    complete: Final = False

    def __init__(self, spec: BridgeSpec, limits: Limits) -> None:
        self.failure: SpicebridgeError | None = None
        self.status = BridgeStatus(spec.name, streams=StreamCount())
        self._endpoint = spec.endpoint
        self._limits = limits
        self._streams: Streams | None = None
        self._stop = anyio.Event()

    async def run(self, line: Line) -> None:
        """Serves streams until `stop` is called, or the channel turns out to carry none.

        Args:
            line: the way to the channel.

        Raises:
            SpicebridgeError: the channel cannot be linked.
        """
        try:
            with one_error(), ExitStack() as stack:
                async with anyio.create_task_group() as tasks:
                    opener: Opener = self._endpoint.accept
                    accepting = anyio.CancelScope()
                    if self._endpoint.waits:
                        room = WaitingRoom(self._endpoint, self.status, self._limits.max_streams)
                        opener = stack.enter_context(room).take
                        tasks.start_soon(_run_in, accepting, room)
                    await self._serve(line, tasks, opener)
                    accepting.cancel()
        finally:
            self.status.state = "ended"

    def stop(self) -> None:
        """Takes no more streams; those that are there are drained."""
        self._stop.set()
        if self._streams is not None:
            self._streams.stop()

    async def _serve(self, line: Line, tasks: TaskGroup, opener: Opener) -> None:
        first = True
        while not self._stop.is_set():
            try:
                await self._serve_link(line, tasks, opener)
            except SessionLostError as error:
                if self._stop.is_set():  # we were waiting for the server
                    return
                if first or not isinstance(error, ChannelClosedError):
                    raise
                log.warning("%s: %s", self.status.name, error)
            except ChannelBusyError as error:
                if first:
                    raise
                log.warning("%s: %s", self._channel_name, error)
            except ProtocolError as error:
                self.failure = error.at(self._channel_name)
                self.status.error(error)
                return
            first = False
            self.status.state = "waiting"
            await self._pause()

    @property
    def _channel_name(self) -> str:
        return self.status.channel.name if self.status.channel else self.status.name

    async def _pause(self) -> None:
        """Leaves the channel alone for a moment; `stop` ends it at once."""
        with anyio.move_on_after(_PAUSE):
            await self._stop.wait()

    async def _serve_link(self, line: Line, tasks: TaskGroup, opener: Opener) -> None:
        """Links the channel, and serves its streams until it ends."""
        self.status.state = "linking" if line.up else "server away"
        async with await line.open() as linked:
            port = f" ({linked.port.name})" if linked.port and linked.port.name else ""
            self.status.event("linked", f"{linked.name}{port} linked", channel=linked.name)
            self._streams = Streams(linked, self.status, self._limits, tasks, opener)
            if self._stop.is_set():
                self._streams.stop()
            self.status.state = "linked"
            try:
                await self._streams.run()
            finally:
                self._streams = None
                self.status.event("unlinked", f"{linked.name} unlinked", channel=linked.name)


async def _run_in(scope: anyio.CancelScope, room: WaitingRoom) -> None:
    with scope:
        await room.run()
