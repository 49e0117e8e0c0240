"""A byte stream to a SPICE peer, whatever it runs on: descriptors, TLS, WebSocket frames.

This is all that the data path knows of it. Reads go into the caller's buffer and writes come from
the caller's views; nothing waits but `readable`, `watch` and `writable`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import anyio.lowlevel


class Wire(ABC):
    """One byte stream. One task may read while another one writes."""

    @abstractmethod
    def read_nowait(self, buffer: memoryview) -> int | None:
        """Reads what is there.

        Returns:
            Bytes read into `buffer`; 0 at the end of the stream; None if there is nothing yet.

        Raises:
            OSError: the stream is broken.
        """

    @abstractmethod
    async def readable(self) -> None:
        """Waits until `read_nowait`, which has returned None, is worth another try."""

    async def read_into(self, buffer: memoryview) -> int:
        """Reads into `buffer`, waiting until there is something; 0 is the end of the stream.

        When cancelled, nothing has been read.
        """
        while (count := self.read_nowait(buffer)) is None:
            await self.readable()
        return count

    async def watch(self, step: Callable[[], bool]) -> None:
        """Calls `step` soon, and again whenever there may be something to read.

        Args:
            step: reads with `read_nowait`, once, and returns whether it is to be called again. It
                must not wait, and may not use anyio: it need not run in a task.

        What it raises ends this, too.
        """
        await anyio.lowlevel.checkpoint()
        while step():
            await self.readable()

    @abstractmethod
    def peer_ended(self) -> bool:
        """Whether the peer has ended its sending, though not all of it was read."""

    @abstractmethod
    def write_nowait(self, buffers: Sequence[memoryview | bytearray]) -> int | None:
        """Writes what the kernel takes of `buffers` at once.

        Returns:
            Bytes written; None if it takes nothing now: what is written next must begin with the
            same bytes, as they may be on their way already.

        Raises:
            OSError: the stream is broken.
        """

    @abstractmethod
    async def writable(self) -> None:
        """Waits until the kernel takes more."""

    async def write_all(self, buffers: list[memoryview]) -> None:
        """Writes all of `buffers`, waiting as long as the peer takes nothing.

        When cancelled, some of the bytes may have been written.
        """
        while not self.write_some(buffers):
            await self.writable()

    def write_some(self, buffers: list[memoryview]) -> bool:
        """Writes what the kernel takes of `buffers` at once, and takes it off them.

        Returns:
            Whether that was all.

        Raises:
            OSError: the stream is broken.
        """
        while buffers:
            written = self.write_nowait(buffers)
            if written is None:
                return False
            drop_written(buffers, written)
        return True

    @abstractmethod
    def end(self) -> None:
        """Ends the sending side; the peer reads end of file once it has read all before it."""

    @abstractmethod
    def hang_up(self) -> None:
        """Ends both sides: what has arrived by now can be read, end of file comes behind it."""

    @abstractmethod
    def close(self) -> None:
        """Gives the descriptors back; may be called twice."""


def drop_written(buffers: list[memoryview], count: int) -> None:
    """Takes the first `count` bytes off a list of views."""
    done = 0
    for view in buffers:
        if count < len(view):
            break
        count -= len(view)
        done += 1
    del buffers[:done]
    if count:
        buffers[0] = buffers[0][count:]
