"""Bytes that go from socket to socket inside the kernel: the same, in order, none left behind."""

from __future__ import annotations

import os
import random
import socket

import anyio
import pytest

from spicebridge.transport import splice as splice_module
from spicebridge.transport.splice import Splice, splice_between
from spicebridge.transport.stream import Stream
from tests.transport.pairs import connected

DATA = random.Random(3).randbytes(100_000)


def received(peer: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += peer.recv(count - len(data))
    return data


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_what_was_taken_is_given(kind: str) -> None:
    with connected(kind) as (source, sender), connected() as (sink, receiver):
        splice = Splice(source, sink)
        sender.sendall(DATA)
        taken = 0
        while taken < len(DATA):
            count = splice.fill(len(DATA) - taken)
            assert count
            taken += count
            assert splice.drain()
            assert splice.held == 0
        assert splice.fill(1) is None
        assert received(receiver, len(DATA)) == DATA
        splice.close()


async def test_no_more_than_asked_for_is_taken() -> None:
    with connected() as (source, sender), connected() as (sink, receiver):
        splice = Splice(source, sink)
        sender.sendall(DATA)
        assert splice.fill(10_001) == 10_001
        assert splice.held == 10_001
        assert splice.drain()
        rest = bytearray(5)
        assert source.read_nowait(memoryview(rest)) == 5
        assert received(receiver, 10_001) + rest == DATA[:10_006]
        splice.close()


async def test_the_end_is_nothing() -> None:
    with connected() as (source, sender), connected() as (sink, _receiver):
        splice = Splice(source, sink)
        sender.close()
        assert splice.fill(10) == 0
        assert splice.drain()
        splice.close()


@pytest.mark.parametrize("size", [None, 4096])
async def test_a_prefix_goes_first_even_where_a_pipe_is_full(
    size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small writes take a slot each, and may leave none for what is to go before them."""
    if size:
        monkeypatch.setattr(splice_module, "_PIPE_SIZE", size)
    with connected() as (source, sender), connected() as (sink, receiver):
        splice = Splice(source, sink)
        for number in range(40):
            sender.send(bytes([number]) * 100)
        got = b""
        while count := splice.fill(100_000):
            splice.prefix(b"!")
            assert splice.drain()
            prefix, *data = received(receiver, count + 1)
            assert prefix == ord("!")
            got += bytes(data)
        assert got == b"".join(bytes([number]) * 100 for number in range(40))
        splice.close()


async def test_what_the_sink_does_not_take_at_once_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(splice_module, "_SEND_BUFFER", 4096)
    with connected() as (source, sender), connected(buffer=4096) as (sink, receiver):
        splice = Splice(source, sink)
        sender.sendall(DATA)
        taken = 0
        got = bytearray()

        async def take() -> None:
            while len(got) < len(DATA):
                await anyio.wait_readable(receiver)
                got.extend(receiver.recv(5000))

        async with anyio.create_task_group() as tasks:
            while taken < len(DATA):
                taken += splice.fill(len(DATA)) or 0
                if splice.drain():
                    continue
                assert splice.held
                if not got:
                    tasks.start_soon(take)
                await splice.drain_all()
        assert got == DATA
        splice.close()


async def test_a_broken_sink_is_an_error() -> None:
    with connected() as (source, sender), connected() as (sink, receiver):
        splice = Splice(source, sink)
        receiver.close()
        sender.send(b"x")
        assert splice.fill(1) == 1
        with pytest.raises(BrokenPipeError):
            splice.drain()
        splice.close()


async def test_once_closed_it_is_a_broken_sink_and_no_descriptor_is_left() -> None:
    with connected() as (source, sender), connected() as (sink, _receiver):
        before = os.listdir("/proc/self/fd")
        splice = Splice(source, sink)
        sender.send(b"x")
        splice.fill(1)
        splice.prefix(b"x")
        splice.close()
        with pytest.raises(BrokenPipeError):
            splice.drain()
        splice.close()
        assert os.listdir("/proc/self/fd") == before


async def test_only_into_unix_sockets_and_only_from_sockets() -> None:
    with connected() as (unix, _), connected("tcp") as (tcp, _), connected() as (other, _):
        assert splice_between(unix, other) is not None
        assert splice_between(tcp, unix) is not None
        assert splice_between(unix, tcp) is None
        reader, writer = os.pipe()
        pipe = Stream.of_pair(reader, writer)
        assert splice_between(pipe, unix) is None
        assert splice_between(unix, pipe) is None
        pipe.close()


# Another source, or sink


async def test_another_source_takes_over_and_what_is_held_goes_first() -> None:
    with (
        connected() as (old, before),
        connected("tcp") as (new, after),
        connected() as (sink, receiver),
    ):
        splice = Splice(old, sink)
        before.sendall(b"before")
        assert splice.fill(100) == 6
        splice.replace(old, new)
        assert splice.usable
        assert splice.held == 6
        after.sendall(b"after")
        await new.readable()
        assert splice.fill(100) == 5
        before.sendall(b"too late")
        assert splice.fill(100) is None
        assert splice.drain()
        assert received(receiver, 11) == b"beforeafter"
        splice.close()


async def test_another_sink_takes_over() -> None:
    with (
        connected() as (source, sender),
        connected() as (old, before),
        connected() as (new, after),
    ):
        splice = Splice(source, old)
        sender.sendall(DATA)
        assert splice.fill(1000) == 1000
        assert splice.drain()
        assert splice.fill(1000) == 1000
        splice.replace(old, new)
        assert splice.usable
        splice.prefix(b"!")
        assert splice.drain()
        assert received(before, 1000) == DATA[:1000]
        assert received(after, 1001) == b"!" + DATA[1000:2000]
        splice.close()


async def test_a_sink_that_is_tcp_or_no_socket_ends_its_use() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    pipe = Stream.of_pair(reader, writer)
    with connected() as (source, _), connected() as (sink, _peer), connected("tcp") as (tcp, _far):
        for other in (tcp, pipe):
            splice = Splice(source, sink)
            splice.replace(sink, other)
            assert not splice.usable
            assert not splice.closed
            splice.close()
    pipe.close()


async def test_a_source_that_is_no_socket_ends_its_use_and_what_is_held_still_goes() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    pipe = Stream.of_pair(reader, writer)
    with connected() as (source, sender), connected() as (sink, receiver):
        splice = Splice(source, sink)
        sender.sendall(b"held")
        splice.fill(100)
        splice.replace(source, pipe)
        assert not splice.usable
        assert splice.drain()
        assert received(receiver, 4) == b"held"
        splice.close()
    pipe.close()


async def test_what_was_filled_in_can_be_taken_back() -> None:
    with connected() as (source, sender), connected() as (sink, receiver):
        splice = Splice(source, sink)
        taken = 0
        sender.sendall(DATA)
        while taken < len(DATA):
            taken += splice.fill(7000) or 0
        buffer = memoryview(bytearray(len(DATA) + 10))
        splice.take_back(buffer)
        assert buffer == DATA + bytes(10)
        assert splice.held == 0
        assert splice.drain()
        receiver.setblocking(False)
        with pytest.raises(BlockingIOError):
            receiver.recv(1)
        splice.close()


async def test_nothing_can_be_taken_back_of_a_splice_that_was_not_used() -> None:
    with connected() as (source, _), connected() as (sink, _peer):
        splice = Splice(source, sink)
        splice.take_back(memoryview(bytearray(b"as it was")))
        splice.close()
