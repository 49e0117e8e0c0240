"""A raw bridge on the client's side: one channel, one local end, one application at a time."""

from __future__ import annotations

import logging
from typing import Final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from spicebridge.bridge.join import Ended, Join, dismiss
from spicebridge.bridge.line import Line
from spicebridge.bridge.report import BridgeStatus
from spicebridge.bridge.spec import BridgeSpec
from spicebridge.channel import Channel, ChannelClosedError
from spicebridge.client.session import Session
from spicebridge.endpoints.base import Application
from spicebridge.errors import (
    ApplicationError,
    ProtocolError,
    SessionLostError,
    SpicebridgeError,
    one_error,
)

log = logging.getLogger(__name__)

_LOOK_EVERY: Final = 0.5
"""Seconds between two looks at whether an application that waits for the server is still there."""

_NOTICE: Final = 0.2
"""Seconds in which the session tells that it was lost, and not only this channel."""


class RawBridge:
    """Joins the applications of a local end, one after another, to a channel.

    Args:
        spec: what is asked for; its endpoint is open.

    Attributes:
        status: what it is doing.
        failure: how a program that we started has failed, if one has; or how the session was lost
            under the one application that there was.
        complete: whether its one application had sent all it would when its other side went, so
            that the end of the server is no loss to it.
    """

    def __init__(self, spec: BridgeSpec) -> None:
        self.failure: SpicebridgeError | None = None
        self.complete = False
        self.status = BridgeStatus(spec.name)
        self._spec = spec
        self._endpoint = spec.endpoint
        self._application: Application | None = None
        self._free = anyio.Event()  # set once the application has been let go
        self._join: Join | None = None
        self._channel: Channel | None = None
        self._unsent = False  # whether the last application's bytes did not all go
        self._linking = anyio.Lock()
        self._line = Line()
        self._session: Session | None = None  # in which the channel is linked
        self._accepting = anyio.CancelScope()
        self._stopping = False

    async def run(self, line: Line) -> None:
        """Serves applications until there can be no more, or `stop` is called.

        Args:
            line: the way to the channel.

        Raises:
            SpicebridgeError: a local end that serves only one application could not; a channel
                that is to be linked always could not be.
        """
        self._line = line
        try:
            with one_error():
                async with anyio.create_task_group() as tasks:
                    if self._spec.attach == "always":
                        await tasks.start(self._stay_linked)
                    self.status.state = "waiting"
                    if self._endpoint.waits:
                        await self._accept(tasks)
                    else:
                        await self._serve(await self._endpoint.accept())
                        tasks.cancel_scope.cancel()
        except SessionLostError:
            if not self._stopping:  # else we were waiting for the server
                raise
        finally:
            await self._unlink()
            self.status.state = "ended"

    def stop(self) -> None:
        """Takes no more applications; the one that is there is drained."""
        self._stopping = True
        self._accepting.cancel()
        if self._join is not None:
            self._join.stop()

    async def _accept(self, tasks: TaskGroup) -> None:
        with self._accepting:
            while True:
                application = await self._endpoint.accept()
                if self._leaving():
                    await self._wait_for_turn(application)
                if self._application is None:
                    self._application = application
                    self._free = anyio.Event()
                    tasks.start_soon(self._serve_one_of_many, application)
                    continue
                self.status.application_refused(application.name, self._application.name)
                await application.aclose()
        if self._application is not None:
            await self._free.wait()
        tasks.cancel_scope.cancel()

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

    async def _serve_one_of_many(self, application: Application) -> None:
        """Serves an application; what goes wrong with it is logged, and the next one may come."""
        try:
            await self._serve(application)
        except SpicebridgeError as error:
            self.status.error(error)
        finally:
            self._application = None
            self._free.set()

    async def _serve(self, application: Application) -> None:
        self._application = application
        self.status.application_came(application.name)
        ended: Ended | None = None
        dropped = 0
        try:
            if not await self._server_there(application):
                return
            linked = await self._linked()
            session = self._session
            ended, broken = await self._run_join(application, linked)
            if self._spec.attach == "demand" or not linked.usable or ended is Ended.CHANNEL_CLOSED:
                await self._unlink()
            if ended in {Ended.PORT_CLOSED, Ended.CHANNEL_CLOSED}:
                dropped = await dismiss(application)
            if session is not None and not self._endpoint.waits:
                if broken is None and ended is Ended.CHANNEL_CLOSED and (dropped or self._unsent):
                    broken = ChannelClosedError(f"{linked.name} was closed before all was sent")
                if broken is not None:
                    with anyio.move_on_after(_NOTICE):
                        await session.lost.wait()
                    self.failure = session.failure or broken
            elif broken is not None:
                log.warning("%s", broken)
        except ProtocolError:
            await self._unlink()
            raise
        finally:
            self.status.state = "waiting"
            await self._let_go(application, ended, dropped)
            self._join = None

    async def _server_there(self, application: Application) -> bool:
        """Waits for the server with an application, whose bytes wait, too.

        Returns:
            Whether it came, or will not come at all, before the application went.
        """
        while not self._line.up:
            self.status.state = "server away"
            if self._line.closed:
                return not self._stopping  # linking tells why
            if application.gone:
                return False
            with anyio.move_on_after(_LOOK_EVERY):
                await self._line.changed()
        return True

    async def _run_join(
        self, application: Application, linked: Channel
    ) -> tuple[Ended, ChannelClosedError | None]:
        """Serves an application that has the channel.

        Returns:
            Why that came to its end, and how the link of the channel broke, if it did.
        """
        self._join = join = Join(
            application,
            linked,
            self.status.traffic,
            keep=self._spec.on_close == "keep",
            detach=self._spec.attach == "always",
        )
        if self._stopping:
            join.stop()
        self.status.state = "joined"
        ended = await join.run()
        self._unsent = join.unsent
        self.complete = join.all_sent and join.failure is None and not self._endpoint.waits
        return ended, join.failure

    async def _let_go(self, application: Application, ended: Ended | None, dropped: int) -> None:
        try:
            await application.aclose()
        except ApplicationError as error:
            self.failure = error
            self.status.error(error)
        finally:
            why = ended.value if ended and ended is not Ended.APPLICATION else ""
            self.status.application_went(application.name, dropped, why)

    async def _stay_linked(self, *, task_status: TaskStatus[None]) -> None:
        """Links the channel in each session, whether or not an application is there."""
        try:
            await self._linked()
        except SpicebridgeError as error:
            if self._stopping or not self._line.comes_back:
                raise
            self.status.error(error)
        task_status.started()
        while True:
            if self._application is not None:
                await self._free.wait()
            elif self._line.up and self._line.session is not self._session:
                try:
                    await self._linked()
                except SpicebridgeError as error:
                    self.status.error(error)
                    self._session = self._line.session  # the next application may try again
            else:
                await self._line.changed()

    async def _linked(self) -> Channel:
        """The channel, linked now unless it is already."""
        async with self._linking:
            linked = self._channel
            if linked is None or not linked.usable or self._line.session is not self._session:
                linked = await self._link()
            return linked

    async def _link(self) -> Channel:
        self.status.state = "linking"
        await self._unlink()
        self._channel = linked = await self._line.open()
        self._session = self._line.session
        port = f" ({linked.port.name})" if linked.port and linked.port.name else ""
        self.status.event("linked", f"{linked.name}{port} linked", channel=linked.name)
        self.status.state = "waiting"
        return linked

    async def _unlink(self) -> None:
        if self._channel is not None:
            linked, self._channel = self._channel, None
            await linked.aclose()
            lost = (
                f", {linked.dropped} bytes that nobody was there to take" if linked.dropped else ""
            )
            self.status.event(
                "unlinked",
                f"{linked.name} unlinked{lost}",
                channel=linked.name,
                dropped=linked.dropped,
            )
