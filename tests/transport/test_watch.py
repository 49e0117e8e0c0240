"""Reading by calls: every byte comes, and every way to end it is told."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import anyio
import pytest

from spicebridge.transport.stream import Stream
from spicebridge.transport.wire import Wire
from tests.conftest import PATIENCE
from tests.transport.pairs import connected, settled


class Reader:
    """Reads a wire by calls.

    Args:
        wire: it.
        enough: bytes after which it wants no more.
        size: bytes of a read.
    """

    def __init__(self, wire: Wire, enough: int, *, size: int = 1 << 16) -> None:
        self.data = bytearray()
        self.calls = 0
        self._wire = wire
        self._enough = enough
        self._buffer = memoryview(bytearray(size))

    def step(self) -> bool:
        """Reads once."""
        self.calls += 1
        count = self._wire.read_nowait(self._buffer)
        if count == 0:
            return False
        self.data += self._buffer[: count or 0]
        return len(self.data) < self._enough

    async def read(self) -> bytes:
        """Reads all."""
        with anyio.fail_after(PATIENCE):
            await self._wire.watch(self.step)
        return bytes(self.data)


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_all_that_comes_is_read(kind: str) -> None:
    with connected(kind) as (stream, peer):
        reader = Reader(stream, 10)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.read)
            for byte in b"0123456789":
                await settled()
                peer.send(bytes([byte]))
        assert reader.data == b"0123456789"


async def test_what_a_read_leaves_is_read_without_more_to_come() -> None:
    with connected() as (stream, peer):
        peer.send(b"0123456789")
        assert await Reader(stream, 10, size=3).read() == b"0123456789"


async def test_the_end_of_the_stream_is_a_call_like_any_other() -> None:
    with connected() as (stream, peer):
        peer.send(b"last")
        peer.close()
        assert await Reader(stream, 100).read() == b"last"


async def test_others_have_their_turn_between_two_reads() -> None:
    with connected() as (stream, peer):
        peer.send(bytes(1000))
        reader = Reader(stream, 1000, size=1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.read)
            while reader.calls < 10:
                await anyio.lowlevel.checkpoint()
            assert reader.calls < 1000


async def test_it_can_be_asked_again() -> None:
    with connected() as (stream, peer):
        for _ in range(3):
            peer.send(b"xy")
            assert await Reader(stream, 2).read() == b"xy"


async def test_when_cancelled_nothing_was_read_and_the_next_one_reads() -> None:
    with connected() as (stream, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Reader(stream, 1).read)
            await settled()
            tasks.cancel_scope.cancel()
        peer.send(b"hello")
        assert await Reader(stream, 5).read() == b"hello"


async def test_an_error_ends_it() -> None:
    def step() -> bool:
        raise ValueError("as a test")

    with connected() as (stream, peer):
        peer.send(b"x")
        with pytest.raises(ValueError, match="as a test"):
            await stream.watch(step)
        assert await Reader(stream, 1).read() == b"x"


async def test_a_broken_stream_is_an_error() -> None:
    with connected("tcp") as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        with pytest.raises(ConnectionResetError):
            await Reader(stream, 1).read()


async def test_interrupt_calls_without_anything_to_read() -> None:
    with connected() as (stream, _peer):
        calls = 0

        def step() -> bool:
            nonlocal calls
            calls += 1
            return calls < 2

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.watch, step)
            await settled()
            assert calls == 1
            stream.interrupt()
        assert calls == 2


async def test_closing_ends_it() -> None:
    with connected() as (stream, _peer):
        closed = anyio.Event()

        async def read() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await Reader(stream, 1).read()
            closed.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await settled()
            stream.close()
        assert closed.is_set()


async def test_closing_leaves_the_next_owner_of_the_descriptor_alone() -> None:
    """The kernel gives a number to somebody else at once, who waits for something, too."""
    with connected() as (stream, _peer), connected() as (other, other_peer):
        async with anyio.create_task_group() as tasks:

            async def read() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await Reader(stream, 1).read()

            tasks.start_soon(read)
            await settled()
            number = stream.reader
            stream.close()
            os.dup2(other.reader, number)
            heir = Stream(number, number, end=lambda: None, close=lambda: os.close(number))
            reader = Reader(heir, 1)
            tasks.start_soon(reader.read)
            await settled()
            other_peer.send(b"x")
        assert reader.data == b"x"
        heir.close()


async def test_a_file_is_read_too_though_no_kernel_tells_when(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    stream = Stream(fd, fd, end=lambda: None, close=lambda: os.close(fd))
    assert await Reader(stream, 100, size=3).read() == b"0123456789"
    stream.close()
