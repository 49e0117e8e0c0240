"""A raw bridge on the server's side: a local program or socket plays the guest of one channel."""

from __future__ import annotations

from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup, TaskStatus

from spicebridge.bridge.join import Ended, Join, dismiss
from spicebridge.bridge.report import BridgeStatus
from spicebridge.bridge.spec import BridgeSpec, ChannelWanted
from spicebridge.channel import Channel
from spicebridge.endpoints.base import Application
from spicebridge.errors import ApplicationError
from spicebridge.protocol.constants import ChannelType, Msg, PortEventType
from spicebridge.protocol.events import PortEvent, PortInit
from spicebridge.protocol.messages import encode_port_event, encode_port_init, has_port_events

_LOOK_EVERY: Final = 0.1  # seconds between two looks at whether a client is still there

_MAX_LEAVING: Final = 8
"""Applications on their way out at once, while the next client is served: programs may take
seconds to end, and a client that comes and goes has one started each time."""

_WEBDAV_NAME: Final = "org.spice-space.webdav.0"

ASKING_TIME: Final = 0.1
"""Seconds that a client which only asks for the name of a port has to go again."""


class ServedBridge:
    """Plays the guest of one channel with the applications of a local end.

    Args:
        spec: what is asked for; its endpoint is open.

    Attributes:
        status: what it is doing.
        done: set once no further application can come.
    """

    def __init__(self, spec: BridgeSpec) -> None:
        self.status = BridgeStatus(spec.name)
        self.done = anyio.Event()
        self._spec = spec
        self._endpoint = spec.endpoint
        self._keep = spec.on_close == "keep" or spec.attach == "always"
        self._application: Application | None = None
        self._arrived = anyio.Event()
        self._free = anyio.Event()  # set once the application has been let go
        self._dismissals: TaskGroup
        self._dismissed = 0  # and not gone yet
        self._join: Join | None = None
        self._stopping = False

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Takes the applications that come by themselves, or that are to be there always.

        Started before any client is served; ends when cancelled.
        """
        self.status.state = "waiting"
        async with anyio.create_task_group() as self._dismissals:
            task_status.started()
            while self._endpoint.waits:
                await self._take(await self._endpoint.accept())
            if self._spec.attach == "always":
                await self._take(await self._endpoint.accept())
            await anyio.sleep_forever()

    async def _take(self, application: Application) -> None:
        """Makes it the application of this bridge, unless there is one that stays."""
        try:
            await self._leaving()
        except BaseException:
            application.stream.close()
            raise
        if self._application is not None:
            self.status.application_refused(application.name, self._application.name)
            await application.aclose()
            return
        self._application = application
        self._free = anyio.Event()
        self.status.application_came(application.name)
        self._arrived.set()

    async def _leaving(self) -> None:
        """Waits for an application that is on its way out."""
        if self._application is None:
            return
        if self._join is not None and self._join.leaving:
            await self._free.wait()
        elif self._join is None and self._application.stream.hung_up():
            await self._let_go()  # it came and went while no client was there

    def stop(self) -> None:
        """Drains the application and the client that are there."""
        self._stopping = True
        self._arrived.set()
        if self._join is not None:
            self._join.stop()

    async def aclose(self) -> None:
        """Lets the application go that waits for a client, once `run` and `serve` have ended."""
        await self._let_go(owed=True)

    async def serve(self, channel: Channel) -> None:
        """Serves one client for as long as it has the channel linked."""
        events = has_port_events(channel.linked.request.channel_type)
        told_open = self._application is not None
        if events:
            await channel.send_message(Msg.PORT_INIT, port_init(self._spec.channel, told_open))
        self.status.event("linked", f"{channel.name} linked", channel=channel.name)
        try:
            if events and await only_asks(channel):
                return
            while await self._until_application(channel):
                if events and not told_open:
                    await _tell(channel, PortEventType.OPENED)
                ended = await self._run_join(channel)
                if ended is not Ended.APPLICATION:
                    break
                told_open = False
                if not events or not self._endpoint.repeats:
                    break  # the end of the channel is all that can tell the client
                await _tell(channel, PortEventType.CLOSED)
                if not self._endpoint.waits:  # one program for each client, as inetd does
                    await self._until_gone(channel)
                    break
        finally:
            if not (self._keep or self._endpoint.waits):  # one that was fetched for a client
                await self._let_go()  # which went before it could say a word
            self.status.state = "waiting"
            self.status.event("unlinked", f"{channel.name} unlinked", channel=channel.name)

    async def _until_application(self, channel: Channel) -> bool:
        """Waits for an application; returns False if the client goes first, or we stop."""
        if self._application is None and not self._endpoint.waits:
            await self._take(await self._endpoint.accept())
        while self._application is None and not self._stopping:
            self._arrived = anyio.Event()
            gone = True
            async with anyio.create_task_group() as tasks:

                async def wait_for_one() -> None:
                    nonlocal gone
                    await self._arrived.wait()
                    gone = False
                    tasks.cancel_scope.cancel()

                tasks.start_soon(wait_for_one)
                await self._until_gone(channel)
                tasks.cancel_scope.cancel()
            if gone:
                return False
        return not self._stopping

    async def _until_gone(self, channel: Channel) -> None:
        """Watches a channel whose client has nobody to talk to, until it goes.

        Once it has sent something that waits for an application, nothing more is read, and
        nothing tells of its end but a look now and then.
        """
        if await _until_data(channel):
            while not channel.peer_ended():
                await anyio.sleep(_LOOK_EVERY)

    async def _run_join(self, channel: Channel) -> Ended:
        application = self._application
        assert application is not None  # noqa: S101 - the caller waited for it
        self._join = Join(application, channel, self.status.traffic, keep=self._keep, detach=True)
        if self._stopping:
            self._join.stop()
        self.status.state = "joined"
        ended: Ended | None = None
        try:
            ended = await self._join.run()
        finally:
            self._join = None
            if ended is Ended.CHANNEL_CLOSED and not self._keep:
                await self._dismiss(application)
            elif ended is not Ended.CHANNEL_CLOSED:
                await self._let_go()
        return ended

    async def _dismiss(self, application: Application) -> None:
        """Lets an application go whose client has gone, which the next one need not wait for."""
        if self._dismissed >= _MAX_LEAVING:
            await self._let_go(owed=True)
            return

        async def let_go() -> None:
            try:
                await self._let_go(application, owed=True)
            finally:
                self._dismissed -= 1

        self._dismissed += 1
        self._dismissals.start_soon(let_go)
        self._application = None
        self._free.set()

    async def _let_go(self, gone: Application | None = None, owed: bool = False) -> None:
        """Lets an application go.

        Args:
            gone: which; else the one that the bridge has.
            owed: whether it is still to read what came before its end of file.
        """
        application = gone or self._application
        if application is None:
            return
        dropped = 0
        try:
            if owed:
                dropped = await dismiss(application)
        finally:
            try:
                await application.aclose()
            except ApplicationError as error:
                self.status.error(error)
            self.status.application_went(application.name, dropped)
            if application is self._application:
                self._application = None
                self._free.set()
            if not self._endpoint.repeats:
                self.done.set()


def port_init(channel: ChannelWanted, opened: bool) -> bytes:
    """The PORT_INIT of a channel that is served; webdav has the name that QEMU gives it."""
    name = channel.port or ("" if channel.type != ChannelType.WEBDAV else _WEBDAV_NAME)
    return encode_port_init(PortInit(name, opened))


async def only_asks(channel: Channel) -> bool:
    """Whether the client was here for the port's name alone, and has gone at once.

    No program is started for it, and nothing that an application has written is lost to it.
    """
    with anyio.move_on_after(ASKING_TIME):
        return not await _until_data(channel)
    return False


async def _until_data(channel: Channel) -> bool:
    """Waits until a client has sent bytes, which are held (True), or has gone (False)."""
    while (items := await channel.receive()) is not None:
        if any(isinstance(item, memoryview) for item in items):
            channel.hold(items)
            return True
        await anyio.lowlevel.checkpoint()  # others have their turn, whatever else it sends
    return False


async def _tell(channel: Channel, event: PortEventType) -> None:
    await channel.send_message(Msg.PORT_EVENT, encode_port_event(PortEvent(event)))
