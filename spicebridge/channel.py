"""A linked channel as a byte stream with port events: a `Conversation` on a `Wire`, either role.

Closing has two rules of its own. Closing a socket with unread input makes the kernel reset the
connection, and the peer then loses what was on its way to it: so a channel ends its sending side,
reads to end of file, and only then closes. And libspice-server 0.15 crashes when a client has gone
before the guest took what it sent (RedCharDeviceSpiceVmc::on_free_self_token uses the client that
is no more), and nothing in the protocol tells what was taken: so a client stays linked until the
channel has been silent for a moment after the last DATA.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

import anyio
import anyio.lowlevel

from spicebridge.errors import SessionLostError, SpicebridgeError
from spicebridge.protocol.constants import Msg, MsgC
from spicebridge.protocol.conversation import Conversation
from spicebridge.protocol.events import Event, PortInit
from spicebridge.protocol.link import Linked
from spicebridge.transport.splice import SPLICE_MIN, Splice, splice_between
from spicebridge.transport.stream import Stream
from spicebridge.transport.wire import Wire

log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 2.0
"""Seconds that a peer has to end its side once we have ended ours."""

SETTLE_TIME = 0.5
"""Seconds of silence after our last DATA before a client leaves a channel."""

SETTLE_LIMIT = 2.0
"""Seconds that a client stays for this at most, on a channel that is never silent."""

_CONTROL_LIMIT = 64 * 1024
"""Bytes of our answers that may wait for the peer to read them before we stop reading from it."""

_PIECES: Final = 8
"""Large pieces that are moved before others have their turn, 64 KiB each from libspice-server."""

_NOTHING: Final = memoryview(b"")


class ChannelClosedError(SessionLostError):
    """The peer closed this channel or its link broke; the session may go on."""


class Channel:
    """A linked channel. One task may receive while another one sends.

    Args:
        wire: the connection, right behind the link result; the channel owns it from now on.
        linked: what was agreed on.
        server: whether we are the server.

    Attributes:
        linked: what was agreed on.
        port: name and state of the port as the server told them at the start, where it did.
    """

    def __init__(self, wire: Wire, linked: Linked, *, server: bool = False) -> None:
        self.linked = linked
        self.port: PortInit | None = None
        self._wire = wire
        self._conversation = Conversation(
            linked.request.channel_type, mini_header=linked.mini_header, server=server
        )
        self._sending = anyio.Lock(fast_acquire=True)
        self._waiting = 0  # bytes of a DATA that has not begun
        self._splice: Splice | None = None  # what holds its payload, if it is not in the buffer
        self._message = _NOTHING  # what has not gone of one that has begun
        self._ended = False
        self._over = False  # the peer has ended its side
        self._server = server
        self._active = float("-inf")  # when our last DATA went, or the peer last spoke after it
        self._held: list[memoryview | Event] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def name(self) -> str:
        """Type and id as users write them: ``port:0``."""
        return self.linked.request.name

    # Receiving

    async def receive(self) -> Sequence[memoryview | Event] | None:
        """Waits for what the peer sends.

        Returns:
            Bytes of DATA as views, valid until the next call, and events, in the peer's order;
            possibly none of either. None once the peer has ended the channel.

        Raises:
            ChannelClosedError: the link broke.
            ProtocolError: the peer broke the protocol.

        When cancelled, nothing has been received.
        """
        if self._held:
            held, self._held = self._held, []
            return held
        if len(self._conversation.control) > _CONTROL_LIMIT:
            await self._answer()
        try:
            buffer = self._conversation.receive_buffer()
            while (count := self._wire.read_nowait(buffer)) is None:
                await self._until_readable()
        except OSError as error:
            raise self._broken(error) from error
        return self._received(count)

    def splice_to(self, sink: Stream) -> Splice | None:
        """A way around our buffers for large DATA, into a stream; None where there is none."""
        return splice_between(self._wire, sink)

    async def receive_each(
        self,
        take: Callable[[Sequence[memoryview | Event]], bool],
        splice: Splice | None = None,
        spliced: Callable[[int], None] = lambda count: None,
    ) -> bool:
        """Hands on what the peer sends, as `receive` returns it, until `take` has had enough.

        Args:
            take: given what each read brings; returns whether it wants more. It must not wait, and
                may not use anyio: see `Wire.watch`.
            splice: takes most of large DATA instead, and wants more as long as its sink takes all.
            spliced: called with the bytes that it has taken.

        Returns:
            False once the peer has ended the channel.

        Raises:
            ChannelClosedError, ProtocolError: see `receive`.
        """
        conversation = self._conversation
        enough = large = False

        def read() -> bool:
            nonlocal enough, large
            # behind large DATA only a header is read, as what follows may be large, too
            header = splice is not None and large and conversation.between_messages
            buffer = conversation.header_buffer() if header else conversation.receive_buffer()
            if (count := self._wire.read_nowait(buffer)) is None:
                return False
            items = self._received(count)
            enough = items is None or not take(items)
            large = conversation.data_left >= SPLICE_MIN or (count >= SPLICE_MIN and not header)
            return large

        def pass_by(splice: Splice) -> bool:
            nonlocal enough
            count = splice.fill(conversation.data_left)
            if not count:
                enough = count == 0 and self._received(0) is None
                return False
            conversation.pass_by(count)
            spliced(count)
            try:
                enough = not splice.drain()
            except OSError:  # who wants no more will find out
                enough = True
            return True

        def step() -> bool:
            for _ in range(_PIECES):
                more = pass_by(splice) if splice and large and conversation.data_left else read()
                if enough or conversation.control:
                    return False
                if not more:
                    break
            return True

        while not (enough or self._over):
            if self._held or conversation.control:  # `receive` sends that meanwhile
                items = await self.receive()
                enough = items is None or not take(items)
                continue
            try:
                await self._wire.watch(step)
            except OSError as error:
                raise self._broken(error) from error
        return not self._over

    def _received(self, count: int) -> Sequence[memoryview | Event] | None:
        """What `count` bytes in the receive buffer mean; None for the end of the stream."""
        if not count:
            self._over = True
            if not self._ended:  # once we have gone, the peer may stop where it likes
                self._conversation.receive_eof()
            return None
        items = self._conversation.receive_data(count)
        if self._active > 0:
            self._active = time.monotonic()
        if self._conversation.control and self._idle and not self._sending.locked():
            self._write_nowait()
        return items

    async def read(self) -> bytes:
        """The next bytes of DATA, copied; port events are passed over. Empty at the end.

        Raises:
            ChannelClosedError, ProtocolError: see `receive`.
        """
        while (items := await self.receive()) is not None:
            if data := b"".join(item for item in items if isinstance(item, memoryview)):
                return data
        return b""

    def peer_ended(self) -> bool:
        """Whether the peer has ended the channel, though not all that it sent was received."""
        return self._wire.peer_ended()

    def hold(self, items: Sequence[memoryview | Event]) -> None:
        """Gives back what `receive` returned, for the next call of it to return again."""
        self._held = list(items)

    async def _until_readable(self) -> None:
        """Waits for input, and sends our answers meanwhile if the peer did not take them yet."""
        if not self._conversation.control or self._sending.locked():
            await self._wire.readable()
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._answer)
            await self._wire.readable()
            tasks.cancel_scope.cancel()

    async def _answer(self) -> None:
        """Sends our answers; a peer that takes none may have sent something before."""
        try:
            await self.flush()
        except ChannelClosedError as error:  # whose DATA has not gone finds out by itself
            log.debug("%s", error)

    # Sending

    def payload_buffer(self) -> memoryview:
        """The one buffer for the payload of `send_payload`."""
        return self._conversation.payload_buffer()

    def splice_from(self, source: Stream) -> Splice | None:
        """A way around our buffers for what a stream sends; None where there is none."""
        return splice_between(source, self._wire)

    def send_payload_nowait(self, count: int, splice: Splice | None = None) -> bool:
        """Sends the first `count` bytes of `payload_buffer` as one DATA, as far as it goes at once.

        Args:
            count: bytes, 1 to `SEND_DATA`.
            splice: holds them instead of the buffer.

        Returns:
            Whether all of it went. If not, `flush` sends the rest; until it has, the buffer must
            be left alone.

        Raises:
            ChannelClosedError: the peer takes nothing more.
        """
        self._refuse_unusable()
        self._waiting = count
        self._splice = splice
        return not self._sending.locked() and self._write_nowait()

    async def send_payload(self, count: int) -> None:
        """Sends the first `count` bytes of `payload_buffer` as one DATA.

        When cancelled, part of a message may have been sent; the channel must be closed then.

        Raises:
            ChannelClosedError: the peer takes nothing more.
        """
        if not self.send_payload_nowait(count):
            await self.flush()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Sends bytes, in as many DATA as it takes; see `send_payload`."""
        buffer = self.payload_buffer()
        view = memoryview(data)
        for start in range(0, len(view), len(buffer)):
            piece = view[start : start + len(buffer)]
            buffer[: len(piece)] = piece
            await self.send_payload(len(piece))

    async def send_message(self, message_type: Msg | MsgC, payload: bytes = b"") -> None:
        """Sends one message that is not DATA.

        Raises:
            ChannelClosedError: the peer takes nothing more.
        """
        self._refuse_unusable()
        self._conversation.send(message_type, payload)
        await self.flush()

    async def flush(self) -> None:
        """Sends what still waits, if the peer takes any: a DATA, and our answers.

        When cancelled, the rest goes before what follows.

        Raises:
            ChannelClosedError: the peer takes nothing more, and some of a DATA had not gone.
        """
        async with self._sending:
            while not self._write_nowait():
                await self._wire.writable()

    def _refuse_unusable(self) -> None:
        if not self.usable:
            raise ChannelClosedError(f"nothing more can be sent on {self.name}")

    def _write_nowait(self) -> bool:
        """Sends what the kernel takes of what waits; returns whether that was all."""
        control = self._conversation.control
        try:
            while control or not self._idle:
                if self._message:
                    written = self._wire.write_nowait([self._message])
                    if written is None:
                        return False
                    self._message = self._message[written:]
                    self._active = time.monotonic()
                elif self._splice is not None and not self._waiting:
                    if not self._splice.drain():
                        return False
                    self._splice = None
                    self._active = time.monotonic()
                elif control:
                    written = len(control) if self._ended else self._wire.write_nowait([control])
                    if written is None:
                        return False
                    del control[:written]
                else:  # from here on nothing may come between
                    self._begin()
        except OSError as error:
            # it has gone, but what it sent before still waits to be read
            self._ended = True
            control.clear()
            if not self._idle:
                raise self._broken(error) from error
        return True

    def _begin(self) -> None:
        if self._splice is None:
            self._message = self._conversation.data_message(self._waiting)
        else:
            self._splice.prefix(self._conversation.data_header(self._waiting))
        self._waiting = 0

    # Closing

    @property
    def usable(self) -> bool:
        """Whether more can be sent: our side has not ended, nor does a message of it wait."""
        return self._idle and not self._ended

    @property
    def _idle(self) -> bool:
        return not (self._waiting or self._message or self._splice)

    def end(self) -> None:
        """Ends our sending side: the peer reads end of file behind all that was sent."""
        self._ended = True
        try:
            self._wire.end()
        except OSError:  # the link has broken already, as `receive` will say
            pass

    def abort(self) -> None:
        """Closes at once; what is on its way in either direction may be lost."""
        self._wire.close()

    async def settle(self) -> None:
        """Waits, as a client, until the guest may be supposed to have taken our last DATA.

        Another task receives meanwhile. Bounded by `SETTLE_LIMIT`. A guest that has closed its port
        takes nothing, however long one waits.
        """
        if self._server or (self.port is not None and not self.port.opened):
            return
        with anyio.move_on_after(SETTLE_LIMIT):
            while (rest := self._active + SETTLE_TIME - time.monotonic()) > 0:
                await anyio.sleep(rest)

    async def aclose(self) -> None:
        """Settles, ends our side, reads the peer's to its end, and closes.

        What the peer still sends is dropped; who wants it calls `settle`, `end` and `receive`
        before. Bounded by `SETTLE_LIMIT` and `CLOSE_TIMEOUT`. When cancelled, it hurries: no more
        than `SETTLE_TIME` for each of the two.
        """
        try:
            await self._close(CLOSE_TIMEOUT)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(2 * SETTLE_TIME, shield=True):
                await self._close(SETTLE_TIME)
            raise
        finally:
            self._wire.close()

    async def _close(self, patience: float) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_settled, tasks.cancel_scope, patience)
            try:
                while await self.receive() is not None:
                    await anyio.lowlevel.checkpoint()
            except (SpicebridgeError, anyio.ClosedResourceError):
                pass  # it is gone, which is what we want
            tasks.cancel_scope.cancel()

    async def _end_settled(self, reading: anyio.CancelScope, patience: float) -> None:
        await self.settle()
        self.end()
        await anyio.sleep(patience)
        reading.cancel()

    def _broken(self, error: OSError) -> ChannelClosedError:
        return ChannelClosedError(f"the link of {self.name} broke: {error.strerror}")
