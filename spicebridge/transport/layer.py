"""A wire inside another one, which turns bytes into other bytes: TLS, WebSocket, SASL's layer.

A write counts as done once the wire below has taken all that it was turned into. Until then the
caller is told that nothing goes, as OpenSSL does, and comes back with the same bytes: so no more
than one turned piece is ever held, and who waits for `write_all` has written.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

import anyio.lowlevel

from spicebridge.transport.wire import Wire, drop_written

_CHUNK: Final = 256 * 1024
"""Bytes that are read from below, or taken from the caller, at a time."""

_TURN: Final = 4
"""Pieces, of `_CHUNK` bytes at most, that are read before others have their turn."""

_BARREN: Final = 4
"""Reads from below, one after another, that may give the caller nothing before others have their
turn: a peer may send empty frames for ever."""


class Layer(Wire):
    """A wire on another one.

    Args:
        inner: the wire below; the layer owns it from now on.
    """

    def __init__(self, inner: Wire) -> None:
        self._inner = inner
        self._received = memoryview(b"")  # before it speaks, a peer should cost little
        self._unsent: list[memoryview] = []
        self._ended = False
        self._owed = 0  # bytes of the caller's that stand in `_unsent`, turned
        self._unread = False  # whether there may be more below, though the caller was told not
        self._read_all = False  # whether the caller was told that there is no more

    # What a layer is

    @abstractmethod
    def _feed(self, data: memoryview) -> None:
        """Takes bytes from below; `data` is valid until `_take` has returned None."""

    @abstractmethod
    def _take(self, buffer: memoryview) -> int | None:
        """Gives what the bytes from below have become.

        Returns:
            Bytes written to `buffer`; 0 at the end of the stream; None if it needs more.
        """

    @abstractmethod
    def _turn(self, buffer: memoryview) -> bytes:
        """What goes down for bytes of the caller's."""

    @abstractmethod
    def _last_word(self) -> bytes:
        """What tells the peer that our sending side has ended; empty where nothing does."""

    def _say(self, data: bytes) -> None:
        """Sends something of the layer's own, now or before what the caller sends next."""
        if data:
            self._unsent.append(memoryview(data))
            self._try_flush()

    # What a wire does

    def read_nowait(self, buffer: memoryview) -> int | None:
        """Reads what is there; see `Wire`."""
        self._read_all = False
        for _ in range(_BARREN):
            if (count := self._take(buffer)) is not None:
                return count
            if not self._received:
                self._received = memoryview(bytearray(_CHUNK))
            received = self._inner.read_nowait(self._received)
            if not received:  # nothing, or the end, which needs no word from the peer
                self._read_all = True
                return received
            self._feed(self._received[:received])
        self._unread = self._read_all = True
        return None

    async def watch(self, step: Callable[[], bool]) -> None:
        """Calls `step` whenever there is something to read, here or below; see `Wire`."""
        more = True

        def turn() -> bool:
            nonlocal more
            for _ in range(_TURN):
                more = step()
                if not more or self._ended:
                    return False
                if self._read_all:
                    return True
            return False

        while more:
            await self._inner.watch(turn)
            if more and self._read_all:
                await self.readable()  # and sends our last word meanwhile

    async def readable(self) -> None:
        """Waits until there may be something to read."""
        if self._unread:
            self._unread = False
            await anyio.lowlevel.checkpoint()
        elif self._ended and self._unsent:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send_last_word)
                await self._inner.readable()
                tasks.cancel_scope.cancel()
        else:
            await self._inner.readable()

    async def _send_last_word(self) -> None:
        """Sends what waits once the peer takes it: after our end no writer will come for it."""
        while not self._try_flush():
            try:
                await self._inner.writable()
            except anyio.BusyResourceError:  # a writer is there after all, and sends it
                return

    def _try_flush(self) -> bool:
        """As `_flush`; a peer that takes nothing any more may have sent something before."""
        try:
            return self._flush()
        except OSError:
            return True

    def peer_ended(self) -> bool:
        """Whether the peer has closed the connection below."""
        return self._inner.peer_ended()

    def write_nowait(self, buffers: Sequence[memoryview | bytearray]) -> int | None:
        """Writes what the kernel takes; see `Wire`."""
        if not self._owed and self._flush():
            for buffer in buffers:
                with memoryview(buffer)[: _CHUNK - self._owed] as piece:
                    if piece:
                        self._unsent.append(memoryview(self._turn(piece)))
                        self._owed += len(piece)
                if self._owed == _CHUNK:
                    break
        if not self._flush():
            return None
        owed, self._owed = self._owed, 0
        return owed

    async def writable(self) -> None:
        """Waits until the kernel takes more."""
        await self._inner.writable()

    def _flush(self) -> bool:
        """Sends what waits; returns whether nothing does any more."""
        while self._unsent:
            written = self._inner.write_nowait(self._unsent)
            if written is None:
                return False
            drop_written(self._unsent, written)
        return True

    def end(self) -> None:
        """Ends the sending side with a word of the layer's own, where it has one.

        The connection below stays whole then, as a proxy would take its half for all of it.
        """
        if self._ended:
            return
        self._ended = True
        if word := self._last_word():
            self._say(word)
        else:
            self._inner.end()

    def hang_up(self) -> None:
        """Ends both sides of the connection below."""
        self._inner.hang_up()

    def close(self) -> None:
        """Closes the connection below."""
        self._inner.close()
