"""A demultiplexed bridge on the server's side: local connections become streams of the guest."""

from __future__ import annotations

import logging

import anyio
from anyio.abc import TaskGroup, TaskStatus

from spicebridge.bridge.report import BridgeStatus, StreamCount
from spicebridge.bridge.served import only_asks, port_init
from spicebridge.bridge.spec import BridgeSpec, Limits
from spicebridge.bridge.streams import Streams
from spicebridge.bridge.waiting import WaitingRoom
from spicebridge.channel import Channel
from spicebridge.errors import one_error
from spicebridge.protocol.constants import Msg
from spicebridge.protocol.messages import has_port_events


class ServedDemux:
    """Plays the guest of one channel: each connection to the local end is a stream of its own.

    Args:
        spec: what is asked for; its endpoint listens, and is open.
        limits: of the streams.

    Attributes:
        status: what it is doing.
        done: set once no further application can come.
    """

    def __init__(self, spec: BridgeSpec, limits: Limits) -> None:
        self.status = BridgeStatus(spec.name, streams=StreamCount())
        self.done = anyio.Event()
        self._spec = spec
        self._limits = limits
        self._room = WaitingRoom(spec.endpoint, self.status, limits.max_streams)
        self._tasks: TaskGroup  # of streams, which may outlive their client
        self._streams: Streams | None = None
        self._stopping = False

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Takes connections, which wait for a client; ends when cancelled."""
        self.status.state = "waiting"
        async with anyio.create_task_group() as self._tasks:
            task_status.started()
            with self._room:
                await self._room.run()

    def stop(self) -> None:
        """Drains the streams that are there."""
        self._stopping = True
        if self._streams is not None:
            self._streams.stop()

    async def aclose(self) -> None:
        """Nothing is left once `run` and `serve` have ended."""

    async def serve(self, channel: Channel) -> None:
        """Serves one client for as long as it has the channel linked."""
        events = has_port_events(channel.linked.request.channel_type)
        if events:
            await channel.send_message(Msg.PORT_INIT, port_init(self._spec.channel, opened=True))
        self.status.event("linked", f"{channel.name} linked", channel=channel.name)
        self.status.state = "linked"
        try:
            if not (events and await only_asks(channel)):
                await self._serve_streams(channel)
        finally:
            self._streams = None
            self.status.state = "waiting"
            self.status.event("unlinked", f"{channel.name} unlinked", channel=channel.name)

    async def _serve_streams(self, channel: Channel) -> None:
        self._streams = streams = Streams(channel, self.status, self._limits, self._tasks)
        if self._stopping:
            streams.stop()
        with one_error():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._admit, streams)
                await streams.run()
                tasks.cancel_scope.cancel()
        if self._stopping:  # otherwise the next client need not wait for slow applications
            await streams.finish()

    async def _admit(self, streams: Streams) -> None:
        """Makes a stream of every connection."""
        while True:
            application = await self._room.take()
            if streams.ended:  # just now, when it was too late to cancel this
                self._room.put_back(application)
                return
            if not streams.full:
                streams.add(application)
                continue
            self.status.event(
                "app-refused",
                f"{application.name} refused: max-streams={self._limits.max_streams} are open",
                logging.WARNING,
                app=application.name,
            )
            application.stream.close()
