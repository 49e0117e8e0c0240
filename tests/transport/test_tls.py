"""TLS on a wire: what goes in comes out, both ways, at both ends, and pauses when it must."""

from __future__ import annotations

import errno
import hashlib
import random
import ssl
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from spicebridge.transport.stream import Stream
from spicebridge.transport.tls import TlsWire
from spicebridge.transport.wire import Wire
from tests.conftest import PATIENCE
from tests.peers.certificates import Authority, CertificateFiles
from tests.transport.pairs import connected, read_exactly, read_to_end, until
from tests.transport.tls_tools import client_side, receive_all, server_side, talking

BULK = random.Random(4).randbytes(3_000_001)
HOST = "localhost"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    folder: Path = tmp_path_factory.mktemp("tls")
    return Authority(folder).issue()


async def client(stream: Wire, files: CertificateFiles) -> TlsWire:
    wire = TlsWire(stream, client_side(files), HOST)
    with anyio.fail_after(PATIENCE):
        await wire.handshake()
    return wire


async def test_what_the_peer_sends_comes_out(files: CertificateFiles) -> None:
    def talk(sock: ssl.SSLSocket) -> None:
        sock.sendall(BULK)
        sock.unwrap()

    async with talking(server_side(files), talk) as stream:
        wire = await client(stream, files)
        assert await read_to_end(wire) == BULK
        assert wire.read_nowait(memoryview(bytearray(1))) == 0  # and stays at its end
        wire.end()


async def test_what_we_send_arrives(files: CertificateFiles) -> None:
    digests = []

    def talk(sock: ssl.SSLSocket) -> None:
        digests.append(hashlib.sha256(receive_all(sock)).digest())

    async with talking(server_side(files), talk, buffer=4096) as stream:
        wire = await client(stream, files)
        view = memoryview(BULK)
        await wire.write_all([view[:10], view[10:10], view[10:1_000_000], view[1_000_000:]])
        wire.end()
        with anyio.fail_after(PATIENCE):
            assert await read_to_end(wire) == b""
    assert digests == [hashlib.sha256(BULK).digest()]


async def test_both_directions_at_once(files: CertificateFiles) -> None:
    def talk(sock: ssl.SSLSocket) -> None:
        left = len(BULK)
        while left:
            piece = sock.recv(50_000)
            sock.sendall(piece)
            left -= len(piece)
        sock.unwrap()

    async with talking(server_side(files), talk) as stream:
        wire = await client(stream, files)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.write_all, [memoryview(BULK)])
            assert await read_exactly(wire, len(BULK)) == BULK
        assert await read_to_end(wire) == b""
        wire.end()


async def test_who_has_ended_still_reads(files: CertificateFiles) -> None:
    """What was sent before our end was read, or is on its way, is not lost by it."""

    def talk(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"a" * 100_000)
        assert receive_all(sock) == b"question"
        sock.sendall(b"b" * 100_000)
        sock.unwrap()

    async with talking(server_side(files), talk) as stream:
        wire = await client(stream, files)
        await wire.write_all([memoryview(b"question")])
        start = await read_exactly(wire, 1)  # the rest of the record waits inside OpenSSL
        wire.end()
        wire.end()
        rest = await read_to_end(wire)
    assert start + rest == b"a" * 100_000 + b"b" * 100_000


async def test_a_peer_that_goes_without_a_word_has_ended(files: CertificateFiles) -> None:
    """libspice-server frees its TLS without close_notify (red-stream.cpp)."""

    def talk(sock: ssl.SSLSocket) -> None:
        sock.sendall(b"last")

    async with talking(server_side(files), talk) as stream:
        wire = await client(stream, files)
        assert await read_to_end(wire) == b"last"


async def test_a_full_peer_is_waited_for(files: CertificateFiles) -> None:
    """Nothing more goes until the peer reads, and then the same bytes go on."""
    may_read = anyio.Event()
    received = bytearray()

    def talk(sock: ssl.SSLSocket) -> None:
        anyio.from_thread.run(may_read.wait)
        received.extend(receive_all(sock))

    async with talking(server_side(files), talk, buffer=4096) as stream:
        wire = await client(stream, files)
        rest = memoryview(BULK)
        while (written := wire.write_nowait([rest])) is not None:
            rest = rest[written:]
        assert wire.write_nowait([rest]) is None
        may_read.set()
        with anyio.fail_after(PATIENCE):
            await wire.write_all([rest])
        wire.end()
        await read_to_end(wire)
    assert received == BULK


async def test_a_damaged_record_breaks_the_wire(files: CertificateFiles) -> None:
    """What came whole before it is still given out."""
    with connected() as (ours, theirs), connected() as (middle, far):

        def relay() -> None:
            with server_side(files).wrap_socket(far, server_side=True) as sock:
                sock.sendall(b"whole")
                sock.recv(1)
                sock.sendall(b"damaged")
                sock.recv(1)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, relay)
            theirs.setblocking(False)
            other = Stream.of_socket(theirs)
            tasks.start_soon(_pass_on, other, middle)
            damage = anyio.Event()
            tasks.start_soon(_pass_on, middle, other, damage)
            wire = await client(ours, files)
            assert await read_exactly(wire, 5) == b"whole"
            damage.set()
            await wire.write_all([memoryview(b"x")])
            with pytest.raises(OSError, match="TLS: ") as caught, anyio.fail_after(PATIENCE):
                await read_exactly(wire, 1)
            assert caught.value.errno == errno.EPROTO
            tasks.cancel_scope.cancel()
            theirs.close()
            middle.close()
            far.close()


async def _pass_on(source: Stream, sink: Stream, damage: anyio.Event | None = None) -> None:
    buffer = bytearray(1 << 16)
    while count := await source.read_into(memoryview(buffer)):
        if damage is not None and damage.is_set():
            buffer[count - 1] ^= 1
        await sink.write_all([memoryview(buffer)[:count]])


async def test_tls_inside_tls(files: CertificateFiles) -> None:
    """As through an https proxy; the outer peer is the standard library's memory BIO."""

    def talk(sock: ssl.SSLSocket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        inner = server_side(files).wrap_bio(incoming, outgoing, server_side=True)
        received = bytearray()
        while True:
            try:
                if not inner.version():
                    inner.do_handshake()
                if not (piece := inner.read(1 << 16)):
                    break
                received += piece
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(1 << 16))
        inner.write(hashlib.sha256(received).digest())
        sock.sendall(outgoing.read())

    async with talking(server_side(files), talk) as stream:
        wire = await client(await client(stream, files), files)
        await wire.write_all([memoryview(BULK)])
        wire.end()
        with anyio.fail_after(PATIENCE):
            assert await read_to_end(wire) == hashlib.sha256(BULK).digest()


async def test_as_a_server(files: CertificateFiles) -> None:
    with connected() as (stream, theirs):
        answers = []

        def talk() -> None:
            with client_side(files).wrap_socket(theirs, server_hostname=HOST) as sock:
                sock.sendall(b"question")
                answers.append(receive_all(sock))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, talk)
            wire = TlsWire(stream, server_side(files), server=True)
            await wire.handshake()
            assert await read_exactly(wire, 8) == b"question"
            await wire.write_all([memoryview(b"answer")])
            wire.end()
            await read_to_end(wire)
        assert answers == [b"answer"]


async def test_both_sides_are_ours(files: CertificateFiles) -> None:
    """Ends and half-ends of two of our own wires."""
    with connected() as (stream, theirs):
        server = TlsWire(Stream.of_socket(theirs), server_side(files), server=True)
        wire = TlsWire(stream, client_side(files), HOST)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.handshake)
            tasks.start_soon(wire.handshake)
        await wire.write_all([memoryview(b"to the server")])
        wire.end()
        assert await read_to_end(server) == b"to the server"
        assert not wire.peer_ended()
        await server.write_all([memoryview(b"back")])
        server.end()
        assert await read_to_end(wire) == b"back"
        server.close()
        server.close()
        await until(wire.peer_ended)


async def test_an_end_waits_for_a_peer_that_is_full(files: CertificateFiles) -> None:
    """The kernel has no room for close_notify: it goes while we wait for the peer's end."""
    may_read = anyio.Event()
    received: list[int] = []

    def talk(sock: ssl.SSLSocket) -> None:
        anyio.from_thread.run(may_read.wait)
        received.append(len(receive_all(sock)))

    async with talking(server_side(files), talk, buffer=4096) as stream:
        wire = await client(stream, files)
        taken = 0
        while (written := wire.write_nowait([memoryview(BULK)[:1000]])) is not None:
            taken += written
        wire.end()
        may_read.set()
        with anyio.fail_after(PATIENCE):
            assert await read_to_end(wire) == b""
    assert received == [taken + 1000]  # the last one was on its way
