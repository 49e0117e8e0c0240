"""The data path of a demultiplexed channel: one linked channel and all of its streams.

One task reads the channel and gives each stream's bytes to its application at once where that
takes them, so that nothing is copied while applications keep up. What one does not take waits in
its stream, up to `Limits.buffer`; then the channel waits, for `Limits.stall` seconds at most.

Each stream has a task that waits for its application to send something; how that goes to the
channel is in `turns`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import chain
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from spicebridge.bridge.join import dismiss
from spicebridge.bridge.report import BridgeStatus
from spicebridge.bridge.spec import Limits
from spicebridge.bridge.stream import BridgedStream
from spicebridge.bridge.turns import Turns
from spicebridge.channel import CLOSE_TIMEOUT, Channel, ChannelClosedError
from spicebridge.endpoints.base import Application
from spicebridge.errors import ApplicationError, SpicebridgeError, one_error
from spicebridge.protocol.constants import PortEventType
from spicebridge.protocol.events import Event, PortEvent, PortInit
from spicebridge.protocol.mux import Mux
from spicebridge.transport.wire import drop_written

_LOOK_EVERY: Final = 0.5
"""Seconds between two looks at whether an application that has ended its sending is still there."""

_COUNT_EVERY: Final = 1.0
"""Seconds between two warnings of what was dropped, or refused."""

_Piece = tuple[BridgedStream | Event, list[memoryview]]
"""The next bytes of a stream, none for its end; or an event of the port."""

Opener = Callable[[], Awaitable[Application]]
"""Brings the application of a stream that the peer has opened."""


class Streams:
    """The streams of one linked channel.

    Args:
        channel: it.
        status: where all of it is counted and told.
        limits: of buffers, times and streams.
        tasks: where streams live; they outlive the channel for as long as it takes their
            applications to get what came before its end.
        opener: for a peer that opens streams; None if we do, with `add`.

    Attributes:
        ended: whether the peer has ended the channel, or it was drained: no stream can begin.
    """

    def __init__(
        self,
        channel: Channel,
        status: BridgeStatus,
        limits: Limits,
        tasks: TaskGroup,
        opener: Opener | None = None,
    ) -> None:
        self._channel = channel
        self._status = status
        self._limits = limits
        self._tasks = tasks
        self._opener = opener
        self._mux = Mux(BridgedStream, accepts=opener is not None)
        self._live: set[BridgedStream] = set()
        self.ended = False
        self._stop = anyio.Event()
        self._turns = Turns(channel, self._stop, self._count_up)
        self._speaking = 0  # streams whose applications may still send
        self._silence = anyio.Event()
        self._finished = anyio.Event()  # one of them, or all
        self._pieces: Iterator[_Piece] = iter(())  # of what was read last, those still to deliver
        self._waited = 0.0  # seconds in which a slow application kept the channel waiting
        self._counted = 0  # dropped frames that a warning has told of
        self._counted_at = float("-inf")
        self._refused = 0
        self._refused_at = float("-inf")  # when a warning has told of one

    async def run(self) -> None:
        """Carries bytes until the peer ends the channel, or `stop` has drained it.

        Raises:
            ProtocolError: the peer broke the protocol, or sends no frames.
        """
        why = "the channel was closed"
        try:
            with one_error():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._turns.run)
                    tasks.start_soon(self._drain_when_stopped, tasks.cancel_scope)
                    await self._down()
                    tasks.cancel_scope.cancel()
        except ChannelClosedError as error:
            why = str(error)
        except SpicebridgeError as error:
            why = str(error)
            self._mux.reset()  # a frame that this cut off is none to tell of
            raise
        finally:
            self.ended = True
            self._end_all("spicebridge is stopping" if self._stop.is_set() else why)

    def stop(self) -> None:
        """Ends it: what applications have written by now still goes, and what the peer sends until
        it closes."""
        self._stop.set()

    async def finish(self) -> None:
        """Waits until the applications of all streams have been let go."""
        while self._live:
            self._finished = anyio.Event()
            await self._finished.wait()

    def add(self, application: Application) -> None:
        """Opens a stream for an application."""
        stream = self._mux.open()
        stream.application = application
        self._begin(stream)

    @property
    def full(self) -> bool:
        """Whether there are as many streams as there may be; those that are gone do not count."""
        most = self._limits.max_streams
        return len(self._live) >= most <= sum(not stream.gone for stream in self._live)

    # From the channel to the applications

    async def _down(self) -> None:
        while await self._channel.receive_each(self._take):
            for target, views in self._pieces:
                await self._deliver(target, views)
            if self._mux.dropped_frames != self._counted:
                self._count_dropped(self._now())
            if self._turns.behind:
                await self._turns.send_ends()
            await anyio.lowlevel.checkpoint()

    def _take(self, items: Sequence[memoryview | Event]) -> bool:
        """Gives streams what their applications take at once; `_pieces` is what is left."""
        pieces = self._sort(items)
        for target, views in pieces:
            if not (views and isinstance(target, BridgedStream) and self._give(target, views)):
                self._pieces = chain([(target, views)], pieces)
                return False
        self._pieces = pieces
        return self._mux.dropped_frames == self._counted and not self._turns.behind

    def _sort(self, items: Sequence[memoryview | Event]) -> Iterator[_Piece]:
        target: BridgedStream | None = None
        views: list[memoryview] = []
        now = self._now()
        for item in items:
            if not isinstance(item, memoryview):
                if target is not None:
                    yield target, views
                    target = None
                yield item, []
                continue
            for stream, data in self._mux.receive_data(item, now):
                if target is not None and (stream is not target or data is None):
                    yield target, views
                    target = None
                if data is None:
                    yield stream, []
                elif target is None:
                    target, views = stream, [data]
                else:
                    views.append(data)
        if target is not None:
            yield target, views

    def _give(self, stream: BridgedStream, views: list[memoryview]) -> bool:
        """Gives a stream its next bytes, as far as its application takes them at once.

        Returns:
            Whether that was all; what it was not is left in `views`.
        """
        if stream.application is None or stream.pending or stream.deaf or stream.over:
            return False
        before = stream.down
        drop_written(views, stream.write_nowait(views))
        self._count_down(stream.down - before)
        return not views

    async def _deliver(self, target: BridgedStream | Event, views: list[memoryview]) -> None:
        """Gives a stream its next bytes, or its end; what it does not take at once is held."""
        if not isinstance(target, BridgedStream):
            self._port_event(target)
        elif not views:
            self._peer_ended(target)
        else:
            if target not in self._live and not target.over:
                self._begin_for_peer(target)
            if not self._give(target, views):
                for view in views:
                    await self._hold(target, view)

    async def _hold(self, stream: BridgedStream, data: memoryview) -> None:
        """Keeps bytes until the application takes them; the channel waits where they are many."""
        while data:
            if stream.over or stream.deaf:
                stream.undelivered += len(data)
                return
            room = self._limits.buffer - len(stream.pending)
            if room > 0:
                stream.pending += data[:room]
                data = data[room:]
                self._drain(stream)
                continue
            begun = time.monotonic()
            with anyio.move_on_after(self._limits.stall) as patience:
                await stream.changed.wait()
            self._waited += time.monotonic() - begun
            # a socket may have room long before poll(2) calls it writable
            if patience.cancelled_caught and not (
                stream.application is not None and stream.push(self._count_down)
            ):
                self._stalled(stream)

    def _drain(self, stream: BridgedStream) -> None:
        """Has a task write what is pending; without any, the end of file is all there may be."""
        if stream.application is None or stream.draining:
            return
        if stream.pending:
            stream.draining = True
            self._tasks.start_soon(stream.drain, self._count_down)
        else:
            stream.end_if_delivered()

    def _count_down(self, count: int) -> None:
        self._status.traffic.down += count

    def _count_up(self, count: int) -> None:
        self._status.traffic.up += count

    def _peer_ended(self, stream: BridgedStream) -> None:
        stream.heard = True
        self._drain(stream)
        stream.note_change()

    def _port_event(self, event: Event) -> None:
        if self._opener is None or self._channel.port is None:
            return
        if not isinstance(event, PortEvent) or event.event == PortEventType.BREAK:
            return
        opened = event.event == PortEventType.OPENED
        self._channel.port = PortInit(self._channel.port.name, opened)
        if not opened:
            self._end_all("the guest closed the port")

    def _count_dropped(self, now: float | None = None) -> None:
        """Warns of what was dropped, once in a while; without a time, of all not told of yet."""
        new = self._mux.dropped_frames - self._counted
        if not new or (now is not None and now < self._counted_at + _COUNT_EVERY):
            return
        self._counted = self._mux.dropped_frames
        self._counted_at = now or self._counted_at
        self._status.event(
            "stream-dropped",
            f"data for streams that had ended was dropped: {self._mux.dropped} bytes by now",
            logging.WARNING,
            frames=self._mux.dropped_frames,
            dropped=self._mux.dropped,
        )

    # The life of a stream

    def _begin_for_peer(self, stream: BridgedStream) -> None:
        if stream.replaces is not None:
            stream.replaces.stop_listening()
            stream.replaces = None  # it is kept by its own task
        if self._stop.is_set():
            self._abort(stream, "spicebridge is stopping")
        elif self.full:
            self._refuse(stream, f"max-streams={self._limits.max_streams} are open")
        else:
            self._begin(stream)

    def _begin(self, stream: BridgedStream) -> None:
        self._live.add(stream)
        self._speaking += 1
        self._status.stream_began(stream)
        self._tasks.start_soon(self._serve, stream)

    async def _serve(self, stream: BridgedStream) -> None:
        """One stream, until both sides of it have ended."""
        try:
            try:
                if stream.application is None:
                    await self._open(stream)
                if stream.application is not None:
                    self._drain(stream)
                    await self._turns.carry(stream, stream.application)
            finally:
                self._speaking -= 1
                self._silence.set()
            self._send_end(stream)
            if stream.application is not None and not stream.over:
                await self._wind_down(stream, stream.application)
        finally:
            await self._let_go(stream)

    async def _open(self, stream: BridgedStream) -> None:
        assert self._opener is not None  # noqa: S101 - else `add` has brought it
        try:
            with stream.opening:
                stream.application = await self._opener()
        except SpicebridgeError as error:
            self._refuse(stream, str(error))
        if stream.application is not None and stream.over:
            stream.application.stream.close()

    async def _wind_down(self, stream: BridgedStream, application: Application) -> None:
        """The application has ended its sending, or may send no more: what the peer has sent, or
        still sends, is its own to take."""
        taken, since = stream.down, time.monotonic()
        while not (stream.over or stream.deaf or stream.delivered or application.stream.hung_up()):
            with anyio.move_on_after(min(_LOOK_EVERY, application.linger or _LOOK_EVERY)):
                await stream.changed.wait()
            now = time.monotonic()
            if stream.down != taken:
                taken, since = stream.down, now
            elif now - since >= self._patience(stream, application):
                break
        if not stream.may_speak() and not stream.over:
            stream.deaf = True
            stream.undelivered += await dismiss(application)

    def _patience(self, stream: BridgedStream, application: Application) -> float:
        """Seconds that an application which sends nothing more may take nothing, either."""
        if not stream.may_speak():
            return self._limits.stall
        if stream.pending or application.linger is None:
            return float("inf")
        return application.linger

    async def _let_go(self, stream: BridgedStream) -> None:
        self._mux.abandon(stream)
        stream.over = True
        stream.undelivered += len(stream.pending)
        stream.note_change()
        try:
            if stream.application is not None:
                await stream.application.aclose()
        except ApplicationError as error:
            self._status.error(error)
        finally:
            self._live.discard(stream)
            self._finished.set()
            self._status.stream_ended(stream)

    def _refuse(self, stream: BridgedStream, why: str) -> None:
        self._refused += 1
        now = time.monotonic()
        warn = now >= self._refused_at + _COUNT_EVERY
        self._refused_at = now if warn else self._refused_at
        self._status.event(
            "stream-refused",
            f"stream {stream.id} refused: {why} ({self._refused} by now)",
            logging.WARNING if warn else logging.DEBUG,
            id=stream.id,
            refused=self._refused,
        )
        self._abort(stream, "")

    def _stalled(self, stream: BridgedStream) -> None:
        why = f"its application took nothing for {self._limits.stall:g} seconds"
        self._status.event(
            "stream-stalled", f"stream {stream.id} ended: {why}", logging.WARNING, id=stream.id
        )
        self._abort(stream, why)

    def _send_end(self, stream: BridgedStream) -> None:
        if not stream.gone and self._mux.end(stream):
            self._turns.end(stream.id)

    def _abort(self, stream: BridgedStream, why: str) -> None:
        """Ends a stream both ways, at once and alone."""
        self._send_end(stream)
        self._mux.abandon(stream)
        stream.abort(why)

    def _now(self) -> float:
        """The clock of the mux: an id that we do not listen to is not silent."""
        return time.monotonic() - self._waited

    def _end_all(self, why: str) -> None:
        """The other side of all streams has gone; what it sent is still delivered."""
        if self._mux.missing:
            self._status.event(
                "frame-cut",
                f"{why} inside a frame: {self._mux.missing} bytes of it are missing",
                logging.WARNING,
                missing=self._mux.missing,
            )
        self._mux.reset()
        self._turns.forget_ends()
        self._count_dropped()
        for stream in self._live:
            stream.gone = True
            stream.why = stream.why or why
            stream.opening.cancel()
            self._drain(stream)
            stream.stop_listening()
            stream.note_change()

    async def _drain_when_stopped(self, run: anyio.CancelScope) -> None:
        await self._stop.wait()
        for stream in self._live:
            stream.opening.cancel()
            stream.stop_listening()
        while self._speaking:
            self._silence = anyio.Event()
            await self._silence.wait()
        try:
            await self._turns.send_ends()
        except ChannelClosedError:
            pass  # the reading task finds out how
        await self._channel.settle()
        self._channel.end()
        await anyio.sleep(CLOSE_TIMEOUT)  # until the peer has ended its side, too
        run.cancel()
