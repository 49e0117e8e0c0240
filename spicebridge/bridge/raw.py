"""A raw bridge on the client's side: one channel, one local end, one application at a time."""

from __future__ import annotations

import anyio
from anyio.abc import TaskGroup

from spicebridge.bridge.join import Ended, Join, dismiss
from spicebridge.bridge.report import BridgeStatus
from spicebridge.bridge.spec import BridgeSpec
from spicebridge.channel import Channel
from spicebridge.client.session import ChannelInfo, Session
from spicebridge.endpoints.base import Application
from spicebridge.errors import ApplicationError, SpicebridgeError, one_error


class RawBridge:
    """Joins the applications of a local end, one after another, to a channel.

    Args:
        spec: what is asked for; its endpoint is open.

    Attributes:
        status: what it is doing.
        failure: how a program that we started has failed, if one has.
        complete: whether its one application had sent all it would when its other side went, so
            that the end of the server is no loss to it.
    """

    def __init__(self, spec: BridgeSpec) -> None:
        self.failure: ApplicationError | None = None
        self.complete = False
        self.status = BridgeStatus(spec.name)
        self._spec = spec
        self._endpoint = spec.endpoint
        self._application: Application | None = None
        self._free = anyio.Event()  # set once the application has been let go
        self._join: Join | None = None
        self._channel: Channel | None = None
        self._accepting = anyio.CancelScope()
        self._stopping = False

    async def run(self, session: Session, channel: ChannelInfo) -> None:
        """Serves applications until there can be no more, or `stop` is called.

        Raises:
            SpicebridgeError: a local end that serves only one application could not; a channel
                that is to be linked always could not be.
        """
        try:
            if self._spec.attach == "always":
                await self._link(session, channel)
            self.status.state = "waiting"
            if not self._endpoint.waits:
                await self._serve(await self._endpoint.accept(), session, channel)
                return
            with one_error():
                async with anyio.create_task_group() as tasks:
                    await self._accept(tasks, session, channel)
        finally:
            await self._unlink()
            self.status.state = "ended"

    def stop(self) -> None:
        """Takes no more applications; the one that is there is drained."""
        self._stopping = True
        self._accepting.cancel()
        if self._join is not None:
            self._join.stop()

    async def _accept(self, tasks: TaskGroup, session: Session, channel: ChannelInfo) -> None:
        with self._accepting:
            while True:
                application = await self._endpoint.accept()
                if self._leaving():
                    await self._wait_for_turn(application)
                if self._application is None:
                    self._application = application
                    self._free = anyio.Event()
                    tasks.start_soon(self._serve_one_of_many, application, session, channel)
                    continue
                self.status.application_refused(application.name, self._application.name)
                await application.aclose()

    def _leaving(self) -> bool:
        """Whether the application that has the channel is on its way out."""
        if self._application is None:
            return False
        return self._join.leaving if self._join else self._application.stream.hung_up()

    async def _wait_for_turn(self, application: Application) -> None:
        """Waits until the application before has been let go."""
        try:
            await self._free.wait()
        except BaseException:
            application.stream.close()
            raise

    async def _serve_one_of_many(
        self, application: Application, session: Session, channel: ChannelInfo
    ) -> None:
        """Serves an application; what goes wrong with it is logged, and the next one may come."""
        try:
            await self._serve(application, session, channel)
        except SpicebridgeError as error:
            self.status.error(error)
        finally:
            self._application = None
            self._free.set()

    async def _serve(
        self, application: Application, session: Session, channel: ChannelInfo
    ) -> None:
        self._application = application
        self.status.application_came(application.name)
        ended: Ended | None = None
        dropped = 0
        try:
            linked = self._channel
            if linked is None or not linked.usable:
                linked = await self._link(session, channel)
            ended = await self._run_join(application, linked)
            if self._spec.attach == "demand" or not linked.usable or ended is Ended.CHANNEL_CLOSED:
                await self._unlink()
            if ended in {Ended.PORT_CLOSED, Ended.CHANNEL_CLOSED}:
                dropped = await dismiss(application)
        finally:
            self.status.state = "waiting"
            await self._let_go(application, ended, dropped)
            self._join = None

    async def _run_join(self, application: Application, linked: Channel) -> Ended:
        self._join = Join(
            application,
            linked,
            self.status.traffic,
            keep=self._spec.on_close == "keep",
            detach=self._spec.attach == "always",
        )
        if self._stopping:
            self._join.stop()
        self.status.state = "joined"
        try:
            return await self._join.run()
        finally:
            self.complete = self._join.all_sent and not self._endpoint.waits

    async def _let_go(self, application: Application, ended: Ended | None, dropped: int) -> None:
        try:
            await application.aclose()
        except ApplicationError as error:
            self.failure = error
            self.status.error(error)
        finally:
            why = ended.value if ended and ended is not Ended.APPLICATION else ""
            self.status.application_went(application.name, dropped, why)

    async def _link(self, session: Session, channel: ChannelInfo) -> Channel:
        self.status.state = "linking"
        await self._unlink()
        self._channel = linked = await session.open_channel(channel)
        port = f" ({linked.port.name})" if linked.port and linked.port.name else ""
        self.status.event("linked", f"{channel.name}{port} linked", channel=channel.name)
        return linked

    async def _unlink(self) -> None:
        if self._channel is not None:
            linked, self._channel = self._channel, None
            await linked.aclose()
            self.status.event("unlinked", f"{linked.name} unlinked", channel=linked.name)
