"""Towards the channel: the streams take turns of one frame each.

Turns are given in the order of asking, so a bulk transfer and a listing get alternate frames. A
frame is read right behind the place of its headers, once the turn has come: a stream that waits
holds no buffer. Ends of streams wait in a queue, as those who end them must not wait; they go
before the next frame, which may be of a new stream with the same id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel

from spicebridge.bridge.stream import BridgedStream
from spicebridge.channel import Channel, ChannelClosedError
from spicebridge.endpoints.base import Application
from spicebridge.protocol.mux import MUX_HEADER, pack_mux_header
from spicebridge.transport.stream import Stream

_FRAME: Final = 64 * 1024
"""Bytes of a frame with its header, at most; the size in that is 16 bits."""

_MAX_ENDS: Final = 4096
"""Ends that may wait to be sent."""


class Turns:
    """Sends the frames of all streams over one channel.

    Args:
        channel: it.
        stopping: set once applications are to be left where they stand.
        count: called with the bytes of each frame that went.
    """

    def __init__(
        self, channel: Channel, stopping: anyio.Event, count: Callable[[int], None]
    ) -> None:
        self._channel = channel
        self._stopping = stopping
        self._count = count
        self._payload = channel.payload_buffer()
        self._turn = anyio.Lock(fast_acquire=True)
        self._ends: deque[int] = deque()  # ids whose size 0 waits to be sent
        self._ends_wait = anyio.Event()

    async def carry(self, stream: BridgedStream, application: Application) -> None:
        """Sends what an application sends, until it ends or may say nothing more.

        Why it ended, unless by itself, is in the stream's `why` then.
        """
        source = application.stream

        def step() -> bool:
            nothing_waits = self._channel.usable and not (self._turn.locked() or self._ends)
            if not nothing_waits or self._stopping.is_set() or not stream.may_speak():
                return False
            if not (read := self._fill(stream, source)):
                return read is None
            all_sent = self._channel.send_payload_nowait(MUX_HEADER + read)
            self._sent(stream, read)
            return all_sent

        try:
            while stream.may_speak():
                if not self._stopping.is_set():
                    await source.watch(step)
                async with self._turn:
                    if not stream.may_speak():
                        return
                    await self._write_ends()
                    if read := self._fill(stream, source):
                        await self._channel.send_payload(MUX_HEADER + read)
                if read == 0 or (read is None and self._stopping.is_set()):
                    return
                self._sent(stream, read or 0)
                await anyio.lowlevel.checkpoint()
        except (OSError, ChannelClosedError, anyio.ClosedResourceError) as error:
            if stream.may_speak():
                reason = error.strerror if isinstance(error, OSError) else error
                stream.why = f"{application.name}: {reason}"

    def _sent(self, stream: BridgedStream, count: int) -> None:
        stream.up += count
        self._count(count)

    def end(self, client_id: int) -> None:
        """Has size 0 sent for a stream, behind all that went of it."""
        self._ends.append(client_id)
        self._ends_wait.set()

    async def run(self) -> None:
        """Sends the ends that wait, until cancelled or the channel takes nothing more."""
        try:
            while True:
                await self._ends_wait.wait()
                self._ends_wait = anyio.Event()
                await self.send_ends()
        except ChannelClosedError:
            pass  # who reads the channel finds out how

    @property
    def behind(self) -> bool:
        """Whether so many ends wait that no more should come before some were sent."""
        return len(self._ends) > _MAX_ENDS

    async def send_ends(self) -> None:
        """Sends the ends that wait.

        Raises:
            ChannelClosedError: the peer takes nothing more.
        """
        async with self._turn:
            await self._write_ends()

    def forget_ends(self) -> None:
        """There is nobody left to be told of them."""
        self._ends.clear()

    async def _write_ends(self) -> None:
        """Many in one DATA, behind what a stream could not send at once; only within a turn."""
        await self._channel.flush()
        while self._ends:
            count = min(len(self._ends), len(self._payload) // MUX_HEADER)
            for number in range(count):
                pack_mux_header(self._payload, number * MUX_HEADER, self._ends.popleft(), 0)
            await self._channel.send_payload(count * MUX_HEADER)

    def _fill(self, stream: BridgedStream, source: Stream) -> int | None:
        """Makes a frame of what there is to read; see `Stream.gather_nowait`."""
        read = source.gather_nowait(self._payload[MUX_HEADER:_FRAME])
        if read:
            pack_mux_header(self._payload, 0, stream.id, read)
        return read
