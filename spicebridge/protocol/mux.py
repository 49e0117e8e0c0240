"""Many streams on one channel: the frames of webdav, and the life of the streams in them.

A frame is ``int64 client id, uint16 size, data``, little-endian; size 0 ends the stream's direction
(spice-gtk's channel-webdav.c, phodav's spice-webdavd.c). Frames are cut anywhere by the DATA
messages that carry them. Nothing announces a stream: the first data of an id opens it, and an id
that has ended in both directions may come again at once.

What spice-webdavd adds, and what follows from it:

- It takes ids from pointers and uses them again; a connection that said nothing ends with size 0
  for an id that nobody has seen.
- It ignores size 0 from us: the guest may go on sending for a stream that we have ended. That is
  dropped until its own size 0 comes. None comes where the guest's program was killed, and a program
  that keeps its connection never learns that we have ended it; so an id that has been silent for
  `FORGET_AFTER` seconds is free, too, and what comes then is a new stream's.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, Self, TypeVar

from spicebridge.errors import ProtocolError
from spicebridge.protocol.plausibility import Plausibility

_HEADER: Final = struct.Struct("<qH")

MUX_HEADER: Final = _HEADER.size
"""Bytes of a frame before its data: int64 client id, uint16 size."""

MAX_MUX_DATA: Final = 0xFFFF
"""Bytes of data in one frame; the size is a uint16."""

FORGET_AFTER: Final = 2.0
"""Seconds since its last frame after which an id that we alone have ended is free again."""

_MAX_ENDED: Final = 65536
"""Ids that are remembered as ended by us; a guest has far fewer connections."""

Piece = tuple[int, memoryview | None]
"""A client id, and data of it as far as it has arrived, or None where size 0 ends the stream."""


def pack_mux_header(buffer: memoryview | bytearray, offset: int, client_id: int, size: int) -> None:
    """Writes the `MUX_HEADER` bytes of a frame.

    Args:
        buffer: where to.
        offset: in it, in bytes.
        client_id: any int64.
        size: bytes of data that follow; 0 ends the stream.
    """
    _HEADER.pack_into(buffer, offset, client_id, size)


class MuxDecoder:
    """Takes frames apart, however they are cut, without copying their data.

    Attributes:
        position: bytes understood since the start or the last `reset`.
    """

    def __init__(self) -> None:
        self.position = 0
        self._head = bytearray()  # of a header that has not arrived whole
        self._id = 0
        self._size = 0  # of the data of its frame
        self._left = 0  # bytes of them still to come

    def receive_data(self, data: memoryview) -> list[Piece]:
        """Takes the next bytes of the channel.

        Returns:
            What they hold, in order; the data are views of `data`, and none is empty.
        """
        pieces: list[Piece] = []
        offset, end = 0, len(data)
        self.position += end
        while offset < end:
            if not self._left:
                if self._head or end - offset < MUX_HEADER:
                    take = min(MUX_HEADER - len(self._head), end - offset)
                    self._head += data[offset : offset + take]
                    offset += take
                    if len(self._head) < MUX_HEADER:
                        break
                    self._id, self._size = _HEADER.unpack(self._head)
                    self._head.clear()
                else:
                    self._id, self._size = _HEADER.unpack_from(data, offset)
                    offset += MUX_HEADER
                self._left = self._size
                if not self._left:
                    pieces.append((self._id, None))
                    continue
            take = min(self._left, end - offset)
            if take:
                pieces.append((self._id, data[offset : offset + take]))
                offset += take
                self._left -= take
        return pieces

    @property
    def missing(self) -> int:
        """Bytes of a frame that has begun, or of its header, still to come; 0 between frames."""
        return self._left or (MUX_HEADER - len(self._head) if self._head else 0)

    @property
    def within(self) -> bool:
        """Whether the next data go on with a frame of which some have been given."""
        return 0 < self._left < self._size

    def reset(self) -> None:
        """Begins anew, as when the port was closed."""
        self.position = self._left = 0
        self._head.clear()


class MuxStream:
    """The life of one stream. An id that comes again is another stream.

    Args:
        client_id: int64.

    Attributes:
        id: the same.
        peer_ended: whether the peer has sent size 0.
        ended: whether we have.
        replaced: whether the peer has begun another stream with this id: nothing more may be sent.
        replaces: the stream that this one has replaced, if we had not ended that.
        spoke: when the peer has sent the last data, on the clock of `Mux.receive_data`.
    """

    def __init__(self, client_id: int) -> None:
        self.id = client_id
        self.peer_ended = False
        self.ended = False
        self.replaced = False
        self.replaces: Self | None = None
        self.spoke = float("-inf")


S = TypeVar("S", bound=MuxStream)


class Mux(Generic[S]):
    """The streams of one channel, seen from one side.

    Args:
        new: makes a stream of a client id.
        accepts: whether the peer opens streams (it plays the guest), or we do.

    Attributes:
        dropped_frames: frames of which something was dropped because we had ended their stream, or
            the peer made up their id.
        dropped: the bytes of them that were.
    """

    def __init__(self, new: Callable[[int], S], *, accepts: bool) -> None:
        self.dropped_frames = 0
        self.dropped = 0
        self._new = new
        self._accepts = accepts
        self._decoder = MuxDecoder()
        self._position = 0  # of the frame that is looked at
        self._receiver: S | None = None  # of the last data
        self._streams: dict[int, S] = {}
        self._ended: OrderedDict[int, float] = OrderedDict()  # by us alone: when it last spoke
        self._next_id = 1
        self._plausibility = Plausibility()

    # Receiving

    def receive_data(self, data: memoryview, now: float) -> list[tuple[S, memoryview | None]]:
        """Takes the next bytes of the channel.

        Args:
            data: they.
            now: seconds on a clock that does not go back, and stands while nothing is read.

        Returns:
            In order, data of streams as views of `data`, and None where one has ended. A stream
            that was not there before has been opened by the peer. The attributes of streams are
            ahead of it: `peer_ended` is set while the last data are still to be looked at.

        Raises:
            ProtocolError: these are no frames.
        """
        found: list[tuple[S, memoryview | None]] = []
        goes_on = self._decoder.within
        pieces = self._decoder.receive_data(data)
        to_come = self._decoder.missing if self._decoder.within else 0
        for number, (client_id, piece) in enumerate(pieces, 1):
            stream = self._streams.get(client_id)
            if piece is None:
                if stream is not None and not stream.peer_ended:
                    self._peer_ends(stream)
                    found.append((stream, None))
                elif self._ended.pop(client_id, None) is None and not client_id:
                    self._judge(self._plausibility.zeros())
                self._position += MUX_HEADER
                continue
            begins = number > 1 or not goes_on
            if not begins:  # what is left of a frame has no other receiver than its beginning had
                stream = stream if stream is self._receiver else None
            elif stream is None or stream.peer_ended:
                size = len(piece) + (to_come if number == len(pieces) else 0)
                stream = self._open_for_peer(client_id, size, stream, now)
            else:
                self._plausibility.known()
            if stream is not None:
                stream.spoke = now
                found.append((stream, piece))
            else:
                self.dropped_frames += begins or self._receiver is not None
                self.dropped += len(piece)
                self._remember(client_id, now)
            self._receiver = stream
            self._position += len(piece) + (MUX_HEADER if begins else 0)
        return found

    def _open_for_peer(self, client_id: int, size: int, old: S | None, now: float) -> S | None:
        """The stream that the first data of an id begins; None if it is to be dropped."""
        last = self._ended.get(client_id)
        if not self._accepts or (last is not None and now - last < FORGET_AFTER):
            return None
        self._judge(self._plausibility.new(client_id, size))
        self._ended.pop(client_id, None)
        self._streams[client_id] = stream = self._new(client_id)
        if old is not None:
            old.replaced = True
            stream.replaces = old
        return stream

    def _remember(self, client_id: int, now: float) -> None:
        """Notes when an id that we alone have ended spoke last, and forgets those long silent."""
        if not self._accepts:
            return  # ids that are not there are dropped anyway, and ours do not come again
        self._ended[client_id] = now
        self._ended.move_to_end(client_id)
        while (
            len(self._ended) > _MAX_ENDED or now - next(iter(self._ended.values())) >= FORGET_AFTER
        ):
            self._ended.popitem(last=False)

    def _peer_ends(self, stream: S) -> None:
        stream.peer_ended = True
        self._plausibility.known()
        if stream.ended:
            del self._streams[stream.id]

    def _judge(self, what: str | None) -> None:
        if what:
            raise ProtocolError(
                "mux frame",
                self._position,
                "frames of int64 client id, uint16 size, data",
                what,
                "does this channel carry many streams? demux=off gives its bytes as they are",
            )

    @property
    def missing(self) -> int:
        """Bytes of a frame that has begun, still to come."""
        return self._decoder.missing

    # Ending

    def open(self) -> S:
        """Opens a stream of ours, with an id that has not been there before."""
        self._streams[self._next_id] = stream = self._new(self._next_id)
        self._next_id += 1
        return stream

    def end(self, stream: S) -> bool:
        """Ends our direction of a stream.

        Returns:
            Whether size 0 is to be sent; not if it was, or another stream has the id now.
        """
        if stream.ended or self._streams.get(stream.id) is not stream:
            return False
        stream.ended = True
        if stream.peer_ended:
            del self._streams[stream.id]
        return True

    def abandon(self, stream: S) -> None:
        """Takes nothing more of a stream that we have ended; what still comes is dropped.

        One that has ended both ways is left alone.
        """
        if self._streams.get(stream.id) is stream:
            del self._streams[stream.id]
            if not stream.peer_ended:
                self._remember(stream.id, stream.spoke)

    def reset(self) -> list[S]:
        """Forgets everything, as when the port was closed.

        Returns:
            The streams that were there.
        """
        streams = list(self._streams.values())
        self._streams.clear()
        self._ended.clear()
        self._decoder.reset()
        self._position = 0
        self._receiver = None
        self._plausibility = Plausibility()
        return streams
