"""A stream on a bare descriptor: nothing lost, nothing doubled, every end told apart."""

from __future__ import annotations

import os
import pty
import socket
import tty

import anyio
import pytest

from spicebridge.transport.stream import _IOV_MAX, Stream
from tests.transport.pairs import connected, read_exactly, read_to_end, settled

SMALL = 4096


# Reading


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_reading_waits_until_there_is_something(kind: str) -> None:
    buffer = bytearray(10)
    with connected(kind) as (stream, peer):
        assert stream.read_nowait(memoryview(buffer)) is None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.read_into, memoryview(buffer))
            await settled()
            peer.send(b"hello")
    assert buffer == b"hello" + bytes(5)


async def test_the_end_of_the_stream_reads_as_nothing() -> None:
    with connected() as (stream, peer):
        peer.send(b"last")
        peer.close()
        assert await read_to_end(stream) == b"last"
        assert stream.read_nowait(memoryview(bytearray(1))) == 0


async def test_a_cancelled_read_has_read_nothing() -> None:
    with connected() as (stream, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.read_into, memoryview(bytearray(10)))
            await settled()
            tasks.cancel_scope.cancel()
        peer.send(b"hello")
        assert await read_exactly(stream, 5) == b"hello"


async def test_interrupt_wakes_who_waits_and_the_stream_goes_on() -> None:
    woken = anyio.Event()

    async def wait() -> None:
        await stream.readable()
        woken.set()

    with connected() as (stream, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settled()
            assert not woken.is_set()
            stream.interrupt()
            await woken.wait()
        peer.send(b"still")
        assert await read_exactly(stream, 5) == b"still"


async def test_an_interrupted_read_goes_on_reading() -> None:
    buffer = bytearray(5)
    with connected() as (stream, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.read_into, memoryview(buffer))
            await settled()
            stream.interrupt()
            await settled()
            peer.send(b"after")
    assert buffer == b"after"


async def test_closing_wakes_who_reads_with_an_error() -> None:
    with connected() as (stream, _):

        async def read() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await stream.read_into(memoryview(bytearray(1)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await settled()
            stream.close()


async def test_closing_wakes_who_writes_with_an_error() -> None:
    with connected(buffer=SMALL) as (stream, _):

        async def write() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await stream.write_all([memoryview(bytes(1 << 20))])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await settled()
            stream.close()


async def test_a_terminal_whose_other_side_has_gone_has_ended() -> None:
    """Linux says EIO there."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    os.write(slave, b"bye")
    os.close(slave)
    with anyio.fail_after(60):
        stream = Stream.of_pair(master, os.dup(master))
        assert await read_to_end(stream) == b"bye"
        stream.close()


async def test_a_broken_connection_is_an_error_and_no_end() -> None:
    with connected("tcp") as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()  # with a reset
        with pytest.raises(ConnectionResetError):
            await stream.read_into(memoryview(bytearray(1)))


# Writing


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_more_buffers_than_one_call_takes_arrive_whole_and_in_order(kind: str) -> None:
    buffers = [memoryview(number.to_bytes(4, "big") * (number % 50)) for number in range(5000)]
    assert len(buffers) > _IOV_MAX
    sent = b"".join(buffers)
    received = b""
    with connected(kind, buffer=SMALL if kind == "unix" else 0) as (stream, peer):
        reader = Stream.of_socket(peer)

        async def write() -> None:
            await stream.write_all(buffers)
            stream.end()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            received = await read_to_end(reader)
        reader.close()
    assert received == sent
    assert buffers == []


async def test_empty_buffers_are_written_without_waiting_forever() -> None:
    with connected() as (stream, peer):
        await stream.write_all([])
        await stream.write_all([memoryview(b"")] * 3)
        await stream.write_all([memoryview(b""), memoryview(b"x"), memoryview(b"")])
        assert peer.recv(10) == b"x"


async def test_a_full_peer_takes_nothing_now() -> None:
    with connected(buffer=SMALL) as (stream, _):
        view = memoryview(bytes(1 << 16))
        while stream.write_nowait([view]) is not None:
            pass
        assert stream.write_nowait([view]) is None


async def test_writing_to_who_has_gone_is_an_error_and_no_signal() -> None:
    with connected() as (stream, peer):
        peer.close()
        with pytest.raises(BrokenPipeError):
            await stream.write_all([memoryview(b"x")])


# Ending and closing


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_after_our_end_the_peer_reads_all_and_can_still_answer(kind: str) -> None:
    with connected(kind) as (stream, peer):
        await stream.write_all([memoryview(b"question")])
        stream.end()
        stream.end()
        assert peer.recv(100) == b"question"
        assert peer.recv(100) == b""
        peer.send(b"answer")
        assert await read_exactly(stream, 6) == b"answer"


async def test_ending_towards_who_has_gone_is_no_error() -> None:
    with connected("tcp") as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        with pytest.raises(ConnectionResetError):
            await stream.read_into(memoryview(bytearray(1)))
        stream.end()


async def test_a_stream_may_be_closed_twice_and_ended_after() -> None:
    with connected() as (stream, peer):
        stream.close()
        stream.close()
        stream.end()
        assert peer.recv(1) == b""


async def test_a_closed_stream_never_touches_who_has_its_number_now() -> None:
    """The kernel gives a descriptor's number to the next that is opened."""
    ours, theirs = socket.socketpair()
    number = ours.fileno()
    stream = Stream.of_socket(ours)
    stream.close()
    stranger, other = socket.socketpair()
    with theirs, stranger, other:
        assert number in {stranger.fileno(), other.fileno()}
        at, far = (stranger, other) if stranger.fileno() == number else (other, stranger)
        far.send(b"not for us")
        with pytest.raises((anyio.ClosedResourceError, OSError)):
            stream.read_nowait(memoryview(bytearray(100)))
        with pytest.raises((anyio.ClosedResourceError, OSError)):
            stream.write_nowait([memoryview(b"not from us")])
        assert at.recv(100) == b"not for us"


@pytest.mark.parametrize("ended", [False, True])
async def test_a_pair_of_pipes_is_given_back_whole(ended: bool) -> None:
    inward, outward = os.pipe(), os.pipe()
    released: list[bool] = []
    os.set_blocking(inward[0], False)
    os.set_blocking(outward[1], False)
    stream = Stream.of_pair(inward[0], outward[1], lambda: released.append(True))
    await stream.write_all([memoryview(b"out")])
    os.write(inward[1], b"in")
    assert await read_exactly(stream, 2) == b"in"
    if ended:
        stream.end()
        assert os.read(outward[0], 10) == b"out"
        assert os.read(outward[0], 10) == b""
        assert not released
    stream.close()
    stream.close()
    assert released == [True]
    with pytest.raises(BrokenPipeError):
        os.write(inward[1], b"x")
    for descriptor in (inward[1], outward[0]):
        os.close(descriptor)


async def test_a_peer_that_closed_both_ways_has_hung_up() -> None:
    with connected() as (stream, peer):
        assert not stream.hung_up()
        peer.close()
        assert stream.hung_up()


async def test_a_peer_that_ended_only_its_sending_has_not_hung_up() -> None:
    with connected() as (stream, peer):
        peer.shutdown(socket.SHUT_WR)
        assert await read_to_end(stream) == b""
        assert not stream.hung_up()


async def test_a_pipe_whose_reader_has_gone_has_hung_up() -> None:
    inward, outward = os.pipe(), os.pipe()
    stream = Stream.of_pair(inward[0], outward[1])
    assert not stream.hung_up()
    os.close(outward[0])
    assert stream.hung_up()
    stream.close()
    os.close(inward[1])


async def test_what_we_have_closed_takes_nothing_more() -> None:
    with connected() as (stream, _):
        stream.close()
        assert stream.hung_up()


async def test_a_pipe_that_we_have_ended_has_nobody_to_hang_up() -> None:
    inward, outward = os.pipe(), os.pipe()
    stream = Stream.of_pair(inward[0], outward[1])
    stream.end()
    os.close(outward[0])
    assert not stream.hung_up()
    stream.close()
    os.close(inward[1])


# What waits to be read, and an end from our side


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_what_waits_to_be_read_is_counted(kind: str) -> None:
    with connected(kind) as (stream, peer):
        assert stream.unread() == 0
        peer.send(b"12345")
        await stream.readable()
        assert stream.unread() == 5
        assert stream.read_nowait(memoryview(bytearray(2))) == 2
        peer.close()
        assert stream.unread() == 3
        assert await read_to_end(stream) == b"345"
        assert stream.unread() == 0


async def test_what_waits_in_a_pipe_is_counted() -> None:
    reader, theirs = os.pipe2(os.O_NONBLOCK)
    other, writer = os.pipe2(os.O_NONBLOCK)
    stream = Stream.of_pair(reader, writer)
    os.write(theirs, b"123")
    os.close(theirs)
    assert stream.unread() == 3
    stream.close()
    assert stream.unread() == 0
    os.close(other)


async def test_where_it_cannot_be_told_nothing_waits() -> None:
    stream = Stream.of_pair(os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY))
    assert stream.unread() == 0
    stream.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_hanging_up_leaves_what_has_arrived_to_be_read_and_an_end_behind_it(
    kind: str,
) -> None:
    with connected(kind) as (stream, peer):
        peer.send(b"arrived")
        await stream.readable()
        stream.hang_up()
        assert await read_to_end(stream) == b"arrived"
        with pytest.raises(BrokenPipeError):
            stream.write_nowait([memoryview(b"x")])
        assert peer.recv(1) == b""
        stream.hang_up()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_hanging_up_wakes_who_waits(kind: str) -> None:
    """A peer that died silently would never do so."""
    steps: list[int | None] = []

    def step() -> bool:
        steps.append(stream.read_nowait(memoryview(bytearray(1))))
        return steps[-1] != 0

    with connected(kind) as (stream, _peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.watch, step)
            await settled()
            stream.hang_up()
    assert steps[-1] == 0


async def test_hanging_up_is_nothing_to_who_has_gone_or_is_no_socket() -> None:
    with connected("tcp") as (stream, peer):
        peer.close()
        stream.hang_up()
        stream.close()
        stream.hang_up()
    reader, writer = os.pipe2(os.O_NONBLOCK)
    pipe = Stream.of_pair(reader, writer)
    pipe.hang_up()
    assert pipe.write_nowait([memoryview(b"x")]) == 1
    pipe.close()
