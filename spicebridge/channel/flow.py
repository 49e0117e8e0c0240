"""The data path of a linked channel: what the peer sends, as it comes; what we send, in DATA."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import anyio
import anyio.lowlevel

from spicebridge.channel.move import Move
from spicebridge.channel.untaken import Untaken
from spicebridge.errors import ProtocolError, SessionLostError
from spicebridge.protocol.constants import (
    MAX_STORED,
    SEND_DATA,
    MigrationMsgC,
    Msg,
    MsgC,
    SpicevmcCap,
)
from spicebridge.protocol.conversation import Conversation
from spicebridge.protocol.events import Event, PortInit
from spicebridge.protocol.link import Linked
from spicebridge.transport.splice import SPLICE_MIN, Splice, splice_between
from spicebridge.transport.stream import Stream
from spicebridge.transport.wire import Wire

log = logging.getLogger(__name__)

_CONTROL_LIMIT = 64 * 1024
"""Bytes of our answers that may wait for the peer to read them before we stop reading from it."""

_PIECES: Final = 8
"""Large pieces that are moved before others have their turn, 64 KiB each from libspice-server."""

_NOTHING: Final = memoryview(b"")

_STORED_IN_A_ROW: Final = 64
"""Small DATA that are sent as an LZ4 block, before one that is not.

A guest that has not taken all of what a client has sent when that goes has libspice-server 0.15
crash as soon as it does, and QEMU with it (RedCharDeviceSpiceVmc::on_free_self_token): but not for
what came as a block, as no token is counted for that. Nor would anything stop us from filling its
memory then; hence every so often one that has a token.
"""


class ChannelClosedError(SessionLostError):
    """The peer closed this channel or its link broke; the session may go on."""


class Flow:
    """Both directions of a linked channel; `Channel` is the whole of it."""

    def __init__(self, wire: Wire, linked: Linked, *, server: bool = False) -> None:
        self.linked = linked
        self.dropped = 0
        self.port: PortInit | None = None
        self._wire = wire
        self._conversation = Conversation(
            linked.request.channel_type, mini_header=linked.mini_header, server=server
        )
        self._sending = anyio.Lock(fast_acquire=True)
        self._waiting = 0  # bytes of a DATA that has not begun
        self._splice: Splice | None = None  # what holds its payload, if it is not in the buffer
        self._spliced = 0  # bytes of that
        self._message = _NOTHING  # what has not gone of one that has begun
        self._closed = False
        self._ended = False
        self._over = False  # the peer has ended its side
        self._splices: list[Splice] = []
        self._reading = False  # somebody waits for what the peer sends
        self._move: Move | None = None
        self._moved = False  # and not heard the first word of the other server yet
        self._failure: ChannelClosedError | None = None  # of a move
        self._server = server
        self._untaken = Untaken()
        self._stored = 0  # DATA in a row that were
        self._held: list[memoryview | Event] = []

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
        # a peer that talks without end must not keep the clock, signals and all others waiting
        await anyio.lowlevel.checkpoint()
        return await self._receive()

    async def _receive(self) -> Sequence[memoryview | Event] | None:
        if not self._held and len(self._conversation.control) > _CONTROL_LIMIT:
            await self._answer()  # before we look who reads: meanwhile a move may have begun
        while not self._held and self._move is not None and self._move.reading:
            await self._move.change()
        if self._held:
            held, self._held = self._held, []
            return held
        if self._failure is not None:
            raise self._failure
        if self._conversation.more:
            return self._understood(0)
        try:
            buffer = self._conversation.receive_buffer()
            while (count := self._wire.read_nowait(buffer)) is None:
                await self._until_readable()
        except OSError as error:
            raise self._broken(error) from error
        return self._received(count)

    def splice_to(self, sink: Stream) -> Splice | None:
        """A way around our buffers for large DATA, into a stream; None where there is none."""
        return self._remembered(splice_between(self._wire, sink))

    def _remembered(self, splice: Splice | None) -> Splice | None:
        self._splices = [each for each in self._splices if not each.closed]
        if splice is not None:
            self._splices.append(splice)
        return splice

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
            splice: takes most of large DATA instead, while it is usable, and wants more as long as
                its sink takes all.
            spliced: called with the bytes that it has taken.

        Returns:
            False once the peer has ended the channel.

        Raises:
            ChannelClosedError, ProtocolError: see `receive`.
        """
        conversation = self._conversation
        enough = large = splices = False

        def read() -> bool:
            nonlocal enough, large
            if conversation.more:
                enough = not take(self._understood(0))
                return True
            # behind large DATA only a header is read, as what follows may be large, too
            header = splices and large and conversation.between_messages
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
                by_pipe = splices and large and conversation.data_left
                more = pass_by(splice) if splice and by_pipe else read()
                if enough or conversation.control or self._is_moved:
                    return False
                if not more:
                    break
            return True

        while not enough and (self._held or self._failure or not self._over):
            # `receive` sends that meanwhile, and waits for who moves us
            if self._held or conversation.control or self._is_moved or self._failure:
                if (items := await self.receive()) is None:
                    return False
                if not take(items):
                    return True
                continue
            splices = splice is not None and splice.usable
            self._reading = True
            try:
                await self._wire.watch(step)
            except OSError as error:
                raise self._broken(error) from error
            finally:
                self._reading = False
        return not self._over

    def _received(self, count: int) -> Sequence[memoryview | Event] | None:
        """What `count` bytes in the receive buffer mean; None for the end of the stream."""
        if not count:
            self._over = True
            if self._move is not None:
                self._move.note_change()
            if not self._ended:  # once we have gone, the peer may stop where it likes
                try:
                    self._conversation.receive_eof()
                except ProtocolError as error:
                    raise ChannelClosedError(f"the link of {self.name} was cut: {error}") from error
            return None
        return self._understood(count)

    def _understood(self, count: int) -> Sequence[memoryview | Event]:
        """What `count` bytes more in the receive buffer mean."""
        items = self._conversation.receive_data(count)
        if self._moved:
            items = self._without_init(items)
        if self._move is not None and self._conversation.moves is not None:
            self._move.reading = True
            self._move.note_change()
        self._untaken.heard()
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
        self._held[:0] = items

    async def _until_readable(self) -> None:
        """Waits for input, and sends our answers meanwhile if the peer did not take them yet."""
        self._reading = True
        try:
            if not self._conversation.control or self._sending.locked():
                await self._wire.readable()
                return
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._answer)
                await self._wire.readable()
                tasks.cancel_scope.cancel()
        finally:
            self._reading = False

    async def _answer(self) -> None:
        """Sends our answers; a peer that takes none may have sent something before."""
        try:
            await self.flush()
        except ChannelClosedError as error:  # whose DATA has not gone finds out by itself
            log.debug("%s", error)

    # Sending

    @property
    def room(self) -> int:
        """Bytes that the next DATA should have at most, for the guest's sake."""
        return SEND_DATA if self._server else self._untaken.room

    def payload_buffer(self) -> memoryview:
        """The one buffer for the payload of `send_payload`."""
        return self._conversation.payload_buffer()

    def splice_from(self, source: Stream) -> Splice | None:
        """A way around our buffers for what a stream sends; None where there is none."""
        return self._remembered(splice_between(source, self._wire))

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

    async def send_message(
        self, message_type: Msg | MsgC | MigrationMsgC, payload: bytes = b""
    ) -> None:
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
        while True:
            async with self._sending:
                while not self._write_nowait():
                    if not self._begun:
                        break
                    await self._wire.writable()
                else:
                    return
            await self._until_may_begin()

    def _refuse_unusable(self) -> None:
        if not self.usable:
            raise ChannelClosedError(f"nothing more can be sent on {self.name}")

    def _write_nowait(self) -> bool:
        """Sends what the kernel takes of what waits; returns whether that was all."""
        control = self._conversation.control
        if self._failure is not None:
            raise self._failure
        try:
            while control or not self._idle:
                if self._message:
                    written = self._wire.write_nowait([self._message])
                    if written is None:
                        return False
                    self._message = self._message[written:]
                    self._untaken.sent(written)
                elif self._splice is not None and not self._waiting:
                    if not self._splice.drain():
                        return False
                    self._splice = None
                    self._untaken.sent(self._spliced)
                elif control:
                    written = len(control) if self._ended else self._wire.write_nowait([control])
                    if written is None:
                        return False
                    del control[:written]
                elif self._move is not None and not self._move.lets_begin():
                    return False
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
        if self._splice is not None:
            self._splice.prefix(self._conversation.data_header(self._waiting))
            self._spliced = self._waiting
            self._stored = 0
        elif self._waiting <= MAX_STORED and self._stored < _STORED_IN_A_ROW and self._may_store:
            self._message = self._conversation.stored_message(self._waiting)
            self._stored += 1
        else:
            self._message = self._conversation.data_message(self._waiting)
            self._stored = 0
        self._waiting = 0

    @property
    def _may_store(self) -> bool:
        """Whether the peer is a server that unpacks LZ4; another one may be, after a move."""
        return not self._server and SpicevmcCap.DATA_COMPRESS_LZ4 in self.linked.channel_caps

    @property
    def _begun(self) -> bool:
        """Whether something waits that has to go to this server, as some of it may have."""
        spliced = self._splice is not None and not self._waiting
        return bool(self._message or spliced or self._conversation.control)

    async def _until_may_begin(self) -> None:
        """Waits while a move holds back what has not begun."""
        if self._move is not None:
            with anyio.move_on_after(self._move.pause):
                await self._move.change()

    @property
    def _is_moved(self) -> bool:
        """Whether nobody may read but who moves us."""
        return self._move is not None and self._move.reading

    def _without_init(self, items: list[memoryview | Event]) -> list[memoryview | Event]:
        """Leaves out the other server's PORT_INIT: it has not had the state of the port yet, and
        calls it closed. What it has to tell of that comes as PORT_EVENT."""
        kept: list[memoryview | Event] = [item for item in items if not isinstance(item, PortInit)]
        self._moved = len(kept) == len(items)
        return kept

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

    def _broken(self, error: OSError) -> ChannelClosedError:
        return ChannelClosedError(f"the link of {self.name} broke: {error.strerror}")


def data_size(item: memoryview | Event) -> int:
    """Bytes of DATA that an item of `Flow.receive` has."""
    return len(item) if isinstance(item, memoryview) else 0
