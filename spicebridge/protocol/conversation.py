"""A linked channel as pure state, for both roles: what the peer's bytes mean, what we answer.

Rules of this file:

- It owns the one buffer into which the peer's bytes are read. DATA is never copied and never
  gathered into messages: its payload comes out as views into that buffer, as far as it has
  arrived, and is valid until the next call of `receive_buffer`.
- Every other message is held until it is whole, which its `Kind` bounds, and becomes an event.
- What the protocol answers by itself (ACK_SYNC and ACK, PONG) is queued in `control`, to be sent
  before, after, never inside the next message of ours.
- A channel that moves in a live migration goes on as the same one, with what the other server
  agreed on. Its state is passed on as DATA is, never gathered.
- Which role we play shows only in the table of messages that the peer may send and in whether
  PING and SET_ACK are among them.
"""

from __future__ import annotations

from typing import Final

from spicebridge.errors import ProtocolError
from spicebridge.protocol.constants import (
    MAX_DATA,
    MAX_MESSAGE,
    MAX_MIGRATE_DATA,
    MAX_STORED,
    MAX_UNCOMPRESSED,
    RECEIVE_BUFFER,
    SEND_DATA,
    ChannelType,
    MigrateFlags,
    MigrationMsgC,
    Msg,
    MsgC,
)
from spicebridge.protocol.events import (
    AckSync,
    Event,
    Ignored,
    Migrate,
    MigrateData,
    Ping,
    Pong,
    SetAck,
    Unfolded,
)
from spicebridge.protocol.framing import MAX_HEADER, Framing
from spicebridge.protocol.messages import (
    Body,
    Kind,
    Table,
    encode_ack_sync,
    encode_ping,
    messages_from_client,
    messages_from_server,
    stored_head,
)

_DATA: Final = int(Msg.DATA)
_MIGRATE_DATA: Final = int(Msg.MIGRATE_DATA)
_COMPRESSED: Final = int(Msg.COMPRESSED_DATA)
_NO_DATA: Final = -1
_HEAD: Final = MAX_HEADER + len(stored_head(MAX_STORED))
"""Bytes before the payload in the send buffer: what may have to stand there."""


class Conversation:
    """One linked channel, seen from one side.

    Args:
        channel_type: of the channel; its messages depend on it.
        mini_header: what was agreed on when it was linked.
        server: whether the peer is a client, that is, whether we are the server.

    Attributes:
        control: bytes of whole messages that wait to be sent; the sender deletes what it has sent.
        data_left: bytes of a DATA payload still to come, or of the state behind MIGRATE_DATA; 0
            between messages, and inside others.
        more: whether to call `receive_data` once more, with 0, before anything else is read: there
            may be messages that were left for later, as those before unfolded to so much.
        moves: what MIGRATE has said, once it has come.
        buffer_size: bytes of the receive buffer, for who wants to know what a channel costs.
    """

    def __init__(self, channel_type: int, *, mini_header: bool, server: bool = False) -> None:
        table = messages_from_client if server else messages_from_server
        self._kinds: Table = table(channel_type)
        main = channel_type == ChannelType.MAIN
        self._data_type = _NO_DATA if main else _DATA
        self._receiving = Framing(mini_header=mini_header)
        self._sending = Framing(mini_header=mini_header)
        # calloc'ed: pages that are never filled are never resident
        self.buffer_size = MAX_MESSAGE + MAX_HEADER if main else RECEIVE_BUFFER
        self._view = memoryview(bytearray(self.buffer_size))
        self._start = 0  # of what is not understood yet
        self._end = 0  # of what has been received
        self._position = 0  # of _view[0] in the peer's stream
        self.data_left = 0
        self._skip_left = 0  # bytes of an ignored payload still to come
        self._ack_window = 0
        self._ack_left = 0
        self.more = False
        self.moves: MigrateFlags | None = None
        self._state_comes = False  # MIGRATE has said so
        self.control = bytearray()
        self._send_buffer = bytearray(0 if main else _HEAD + SEND_DATA)
        self._send_view = memoryview(self._send_buffer)

    # Receiving

    def receive_buffer(self) -> memoryview:
        """Where the next bytes from the peer go; ends the life of the views handed out before."""
        if self._start:
            rest = self._end - self._start
            if rest:
                self._view[:rest] = self._view[self._start : self._end]
            self._position += self._start
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def header_buffer(self) -> memoryview:
        """As `receive_buffer` between messages, with room for a data header and no more."""
        return self.receive_buffer()[: self._receiving.size]

    @property
    def between_messages(self) -> bool:
        """Whether a message has ended and no byte of the next has been received."""
        return not (self.data_left or self._skip_left or self._end > self._start)

    def spare_views(self) -> None:
        """Goes on in another buffer, so that the views handed out before live on."""
        fresh = memoryview(bytearray(self.buffer_size))
        rest = self._end - self._start
        fresh[:rest] = self._view[self._start : self._end]
        self._position += self._start
        self._view = fresh
        self._start, self._end = 0, rest

    def move_on(self, there: Conversation) -> None:
        """Goes on as the same channel with another server.

        Args:
            there: what was said there by now; no DATA.
        """
        self._receiving, self._sending = there._receiving, there._sending
        rest = there._view[there._start : there._end]
        self._view[: len(rest)] = rest
        self._start, self._end, self._position = 0, len(rest), there._position + there._start
        self.data_left, self._skip_left = there.data_left, there._skip_left
        self._ack_window, self._ack_left = there._ack_window, there._ack_left
        self.control[:] = there.control
        self.moves = None
        self._state_comes = False

    def pass_by(self, count: int) -> None:
        """Notes that `count` bytes, no more than `data_left`, went another way than the buffer."""
        self._position += count
        self.data_left -= count

    def receive_data(self, count: int) -> list[memoryview | Event]:
        """Takes `count` bytes that were read into `receive_buffer`.

        Returns:
            In the peer's order, the bytes of DATA as views into the buffer, and events. What the
            protocol answers by itself is in `control` and not among them.

        Raises:
            ProtocolError: the peer sent what the protocol does not allow.
        """
        self._end += count
        view, position, end = self._view, self._start, self._end
        header, unpack = self._receiving.size, self._receiving.unpack_from
        items: list[memoryview | Event] = []
        unfolded = 0
        self.more = False
        while True:
            if self.data_left:
                take = min(self.data_left, end - position)
                if not take:
                    break
                items.append(view[position : position + take])
                position += take
                self.data_left -= take
            elif self._skip_left:
                take = min(self._skip_left, end - position)
                if not take:
                    break
                position += take
                self._skip_left -= take
            if end - position < header:
                break
            kind_number, size = unpack(view, position, self._position + position)
            if kind_number == self._data_type:
                if size > MAX_DATA:
                    raise self._oversized("SPICEVMC_DATA", position, size, MAX_DATA)
                position += header
                self.data_left = size
                self._count_message()
                continue
            if kind_number == _MIGRATE_DATA and self._state_comes:
                if size > MAX_MIGRATE_DATA:
                    raise self._oversized("MIGRATE_DATA", position, size, MAX_MIGRATE_DATA)
                position += header
                self.data_left = size
                self._state_comes = False
                items.append(MigrateData(size))
                continue
            kind = self._kind(kind_number, size, position)
            needed = size if kind.head is None else min(size, kind.head)
            if end - position < header + needed:
                break
            position += header
            body = Body(kind.name, view[position : position + needed], self._position + position)
            self._take(kind.decode(body) if kind.decode else Ignored(kind.name), items)
            position += needed
            self._skip_left = size - needed
            if kind_number == _COMPRESSED and items:  # 256 KiB may unfold to 64 MiB
                unfolded += len(items[-1]) if isinstance(items[-1], memoryview) else 0
                if unfolded >= MAX_UNCOMPRESSED:
                    self.more = True
                    break
        self._start = position
        return items

    def receive_eof(self) -> None:
        """The peer has ended its stream.

        Raises:
            ProtocolError: if it did so inside a message.
        """
        missing = self.data_left + self._skip_left
        if missing or self._end > self._start:
            raise ProtocolError(
                "end of the stream",
                self._position + self._end,
                f"{missing or 'more'} bytes of a message",
                "nothing",
            )

    def _kind(self, number: int, size: int, position: int) -> Kind:
        kind = self._kinds.get(number)
        if kind is None:
            raise ProtocolError(
                "data header",
                self._position + position,
                "a message type of this channel",
                f"{number}",
            )
        if not kind.minimum <= size <= kind.maximum:
            raise self._oversized(kind.name, position, size, kind.maximum, kind.minimum)
        return kind

    def _oversized(
        self, name: str, position: int, size: int, maximum: int, minimum: int = 0
    ) -> ProtocolError:
        at = self._position + position + self._receiving.size - (4 if self._is_mini else 8)
        allowed = f"{minimum}" if minimum == maximum else f"{minimum} to {maximum}"
        return ProtocolError(name, at, f"a size of {allowed} bytes", f"{size}")

    @property
    def _is_mini(self) -> bool:
        return self._receiving.mini_header

    def _take(self, event: Event, items: list[memoryview | Event]) -> None:
        """Answers an event, or hands it on."""
        if type(event) is SetAck:
            self._ack_window = self._ack_left = event.window
            self.control += self._sending.pack(
                MsgC.ACK_SYNC, encode_ack_sync(AckSync(event.generation))
            )
            return
        self._count_message()
        if type(event) is Ping:
            pong = encode_ping(Pong(event.id, event.timestamp))
            self.control += self._sending.pack(MsgC.PONG, pong)
        elif type(event) is Unfolded:
            if event.data:
                items.append(memoryview(event.data))
        else:
            if type(event) is Migrate:
                self.moves = event.flags
                self._state_comes = MigrateFlags.NEED_DATA_TRANSFER in event.flags
            items.append(event)

    def _count_message(self) -> None:
        if self._ack_window:
            self._ack_left -= 1
            if not self._ack_left:
                self._ack_left = self._ack_window
                self.control += self._sending.pack(MsgC.ACK, b"")

    # Sending

    def send(self, message_type: Msg | MsgC | MigrationMsgC, payload: bytes = b"") -> None:
        """Queues a message of ours in `control`."""
        self.control += self._sending.pack(message_type, payload)

    def state_header(self, count: int) -> bytes:
        """The header of our MIGRATE_DATA, whose payload of `count` bytes goes another way."""
        return self._sending.pack_header(MsgC.MIGRATE_DATA, count)

    def payload_buffer(self) -> memoryview:
        """Where the payload of the next DATA goes, `SEND_DATA` bytes; its header goes before it."""
        return self._send_view[_HEAD:]

    def data_message(self, count: int) -> memoryview:
        """The next DATA, whole, whose payload is the first `count` bytes of `payload_buffer`."""
        start = _HEAD - self._sending.size
        self._sending.pack_into(self._send_buffer, start, _DATA, count)
        return self._send_view[start : _HEAD + count]

    def stored_message(self, count: int) -> memoryview:
        """As `data_message`, but a COMPRESSED_DATA with `count` bytes, 1 to `MAX_STORED`."""
        head = stored_head(count)
        start = _HEAD - len(head)
        self._send_buffer[start:_HEAD] = head
        start -= self._sending.size
        self._sending.pack_into(self._send_buffer, start, _COMPRESSED, len(head) + count)
        return self._send_view[start : _HEAD + count]

    def data_header(self, count: int) -> bytes:
        """The header of the next DATA, whose payload of `count` bytes goes another way."""
        return self._sending.pack_header(_DATA, count)
