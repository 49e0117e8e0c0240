"""SPICE in a WebSocket: wsproto's server at the other end, and servers that are none."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)

from spicebridge.errors import ConnectError
from spicebridge.transport.address import WebAddress
from spicebridge.transport.websocket import WebSocketWire, open_websocket
from spicebridge.transport.wire import Wire
from tests.conftest import PATIENCE
from tests.transport.fake_proxy import SaidWire
from tests.transport.pairs import connected, read_exactly, read_to_end, settled
from tests.transport.websocket_tools import (
    BINARY,
    CLOSE,
    FIN,
    PING,
    TEXT,
    VM,
    Answer,
    Server,
    accepted,
    binary,
    frame,
    opened,
)

BULK = random.Random(5).randbytes(3_000_001)
SMALL = 4096

few = settings(max_examples=40)
cuts = st.lists(st.integers(0, 1000), max_size=6)


# Opening


def asked(address: WebAddress) -> bytes:
    """The request for an address, whose server then closes the connection."""
    wire = Answer(lambda _: b"")

    async def ask() -> None:
        with pytest.raises(ConnectError):
            await open_websocket(wire, address, None)

    anyio.run(ask)
    return wire.written


@pytest.mark.parametrize(
    ("address", "host", "target"),
    [
        (VM, "vm.example:8080", "/vm1/spice"),
        (WebAddress("vm.example", 80), "vm.example", "/"),
        (WebAddress("vm.example", 443, "/a%20b?t=1"), "vm.example", "/a%20b?t=1"),
        (WebAddress("::1", 8080), "[::1]:8080", "/"),
        (WebAddress("::1", 443), "[::1]", "/"),
        (WebAddress("fe80::1%eth0", 5900), "[fe80::1]:5900", "/"),
        (WebAddress("bücher.example", 5900), "xn--bcher-kva.example:5900", "/"),
    ],
)
def test_the_request_names_the_host_and_the_path(
    address: WebAddress, host: str, target: str
) -> None:
    asking = asked(address)
    assert asking.startswith(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n".encode())
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(asking)
    [request] = server.events()
    assert isinstance(request, Request)
    assert request.subprotocols == ["binary"]
    assert not request.extensions


def test_the_request_is_what_libspice_reads_at_once() -> None:
    """Its websocket_new reads once, at most 4091 bytes behind the first four."""
    request = asked(VM)
    assert request.startswith(b"GET /vm1/spice HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\n")
    assert len(request) < 512
    assert b"Origin" not in request


@few
@given(cuts, st.sampled_from(["binary", None]))
def test_the_answer_and_what_follows_come_cut_anywhere(
    places: list[int], subprotocol: str | None
) -> None:
    """A server may name no subprotocol (RFC 6455, 4.2.2), as old websockify does."""

    def answer(request: bytes) -> bytes:
        return accepted(request, subprotocol) + binary(b"early ") + binary(b"bird")

    async def talk() -> None:
        wire = await open_websocket(Answer(answer, places), VM, None)
        assert await read_to_end(wire) == b"early bird"

    anyio.run(talk)


def status(line: str, *headers: str) -> Callable[[bytes], bytes]:
    """An HTTP answer."""
    head = "".join(f"{header}\r\n" for header in ("Content-Length: 5", *headers))
    return lambda _: f"HTTP/1.1 {line}\r\n{head}\r\nbody!".encode("latin-1")


def changed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A good answer but for one thing."""
    return lambda request: accepted(request).replace(old, new)


@pytest.mark.parametrize(
    ("answer", "problem", "hint"),
    [
        (status("404 Not Found"), "answered '404 Not Found'", "check the path"),
        (status("200 OK"), "answered '200 OK'", "check the path"),
        (status("404 "), "answered '404'", "check the path"),
        (status("401 Unauthorized"), "answered '401 Unauthorized'", "wants a login"),
        (status("403 Forbidden"), "answered '403 Forbidden'", "wants a login"),
        (status("502 Bad Gateway"), "answered '502 Bad Gateway'", "could not reach the SPICE"),
        (
            status("302 Found", "Location: https://vm.example/x?token=1"),
            "answered '302 Found'",
            "moved to 'https://vm.example/x': use that",
        ),
        (status("304 Not Modified"), "answered '304 Not Modified'", "check the path"),
        (status("103 Early Hints"), "answered '103 Early Hints'", "check the path"),
        (status("500 Oh\xff no"), r"answered '500 Oh\xff no'", "check the path"),
        (status("500 " + "x" * 500), "answered '500 xxx", "check the path"),
        (changed(b"binary", b"chat"), "wrong: unrecognized subprotocol chat", "check the path"),
        (changed(b"binary", b"\xff"), "wrong: 'ascii' codec", "check the path"),
        (changed(b"Accept: ", b"Accept: x"), "wrong: Bad accept token", "check the path"),
        (changed(b"Upgrade: websocket", b"Upgrade: h2c"), "wrong: Missing header", "the path"),
        (changed(b"HTTP/1.1", b"HTTP/x.1"), "wrong: Bad HTTP message", "check the path"),
        (
            changed(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: x\r\n\r\n"),
            "wrong: unrecognized extension x",
            "check the path",
        ),
        (lambda _: b"", "the server closed the connection", "is that a web server"),
        (lambda _: b"HTTP/1.1 1", "closed the connection after 'HTTP/1.1 1'", "is that a web"),
        (lambda _: b"SSH-2.0-OpenSSH\r\n", "answered 'SSH-2.0-OpenSSH'", "is that a web server"),
        (lambda _: b"\x15\3\1\0\2\2\x46", r"answered '\x15\x03\x01", "does it want TLS (wss://)?"),
        (lambda _: b"REDQ\2\0\0\0\2\0\0\0", "answered 'REDQ", "use spice://"),
        (lambda _: b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 9999, "16 KiB of head", "a web server"),
    ],
)
async def test_who_does_not_open_it_is_quoted(
    answer: Callable[[bytes], bytes], problem: str, hint: str
) -> None:
    wire = Answer(answer)
    with pytest.raises(ConnectError) as caught:
        await open_websocket(wire, VM, None)
    said = caught.value.problem
    assert said.startswith("opening the WebSocket at vm.example:8080/vm1/spice: the server")
    assert problem in said
    assert hint in caught.value.hint
    assert str(caught.value).isprintable()
    assert len(said) < 250
    assert wire.closed


@few
@given(st.binary(max_size=200), cuts, st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 101 x\r\n"]))
def test_garbage_is_refused_in_one_line(garbage: bytes, places: list[int], start: bytes) -> None:
    wire = Answer(lambda _: start + garbage + b"\r\n\r\n", places)

    async def ask() -> None:
        with pytest.raises(ConnectError) as caught:
            await open_websocket(wire, VM, None)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400

    anyio.run(ask)
    assert wire.closed


async def test_a_secret_in_the_query_is_not_repeated() -> None:
    address = WebAddress("vm.example", 80, "/spice?token=s3cret")
    wire = Answer(status("404 /spice?token=s3cret: no such thing"))
    with pytest.raises(ConnectError) as caught:
        await open_websocket(wire, address, None)
    assert b"token=s3cret" in wire.written
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["x" * 64, "a..b", "a b\r\n"])
async def test_a_host_that_no_request_can_name_is_refused(host: str) -> None:
    """As a proxy might look it up for us, nobody else has looked at it."""
    wire = Answer(lambda _: b"")
    with pytest.raises(ConnectError, match="it cannot be asked for"):
        await open_websocket(wire, WebAddress(host, 8080), None)
    assert wire.closed
    assert not wire.written


async def test_a_silent_server_is_not_waited_for_longer_than_allowed() -> None:
    with connected() as (stream, peer):
        with pytest.raises(ConnectError, match=r"/vm1/spice: no answer within 0\.01 seconds"):
            await open_websocket(stream, VM, 0.01)
        assert peer.recv(5) == b"GET /"
        assert stream.hung_up()


class Reset(Answer):
    """A server that answers and then breaks the connection."""

    def read_nowait(self, buffer: memoryview) -> int | None:
        if (count := super().read_nowait(buffer)) == 0:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        return count


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (b"", "Connection reset by peer"),
        (b"HTTP/1.1 5", "the server closed the connection after 'HTTP/1.1 5'"),
    ],
)
async def test_a_server_that_resets_the_connection_is_named(said: bytes, problem: str) -> None:
    wire = Reset(lambda _: said)
    with pytest.raises(ConnectError) as caught:
        await open_websocket(wire, VM, None)
    assert caught.value.problem.endswith(f"vm.example:8080/vm1/spice: {problem}")
    assert wire.closed


async def test_who_is_cancelled_while_opening_leaves_nothing_open() -> None:
    with connected() as (stream, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(open_websocket, stream, VM, None)
            await settled()
            assert peer.recv(1)
            tasks.cancel_scope.cancel()
        assert stream.hung_up()


async def test_wsproto_refuses_what_it_does_not_serve() -> None:
    """Its own words for a refusal, instead of ours."""
    with connected() as (stream, sock):
        server = WSConnection(ConnectionType.SERVER)

        async def refuse() -> None:
            await settled()
            server.receive_data(sock.recv(1 << 16))
            list(server.events())
            sock.sendall(server.send(RejectConnection(status_code=403)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refuse)
            with pytest.raises(ConnectError, match="answered '403'; the web server wants a login"):
                await open_websocket(stream, VM, None)


# Data


async def test_what_the_server_sends_comes_out() -> None:
    async with opened() as (wire, server), anyio.create_task_group() as tasks:
        tasks.start_soon(say_in_pieces, server, BULK)
        assert await read_exactly(wire, len(BULK)) == BULK


async def say_in_pieces(server: Server, data: bytes) -> None:
    """Sends data as messages and fragments of every size, pings between them."""
    chance = random.Random(6)
    place = 0
    while place < len(data):
        size = chance.choice([0, 1, 125, 126, 5000, 65_536, 300_000])
        piece = data[place : place + size]
        place += len(piece)
        last = place == len(data) or chance.random() < 0.5
        await server.sends(BytesMessage(data=piece, message_finished=last))
        await server.sends(Ping(payload=b"?"))


async def server_closes(wire: Wire, server: Server) -> None:
    """Reads, so that our end may go, until the server has heard it and closed."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_to_end, wire)
        await server.hears_all()
        server.stream.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_what_we_send_arrives(kind: str) -> None:
    async with opened(kind=kind, buffer=SMALL if kind == "unix" else 0) as (wire, server):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.hears, lambda: len(server.data) == len(BULK))
            view = memoryview(BULK)
            await wire.write_all([view[:10], view[10:10], view[10:1_000_000], view[1_000_000:]])
        wire.end()
        await server_closes(wire, server)
    assert server.data == BULK
    assert server.closes == [1005]  # no code


async def test_both_directions_at_once() -> None:
    async with opened(buffer=SMALL) as (wire, server), anyio.create_task_group() as tasks:
        tasks.start_soon(wire.write_all, [memoryview(BULK)])
        tasks.start_soon(server.hears, lambda: len(server.data) == len(BULK))
        tasks.start_soon(say_in_pieces, server, BULK)
        assert await read_exactly(wire, len(BULK)) == BULK
    assert server.data == BULK


async def test_a_full_server_is_waited_for() -> None:
    """Nothing more goes until it reads, no more than one piece is held, and no byte is doubled."""
    async with opened(buffer=SMALL) as (wire, server):
        assert isinstance(wire, WebSocketWire)
        rest = memoryview(BULK)
        while (written := wire.write_nowait([rest[:100_000]])) is not None:
            rest = rest[written:]
        for _ in range(3):
            assert wire.write_nowait([rest]) is None
            assert sum(map(len, wire._unsent)) < 100_020
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.write_all, [rest])
            await server.hears(lambda: len(server.data) == len(BULK))
    assert server.data == BULK


class Endless(SaidWire):
    """A wire on which there is always another empty message."""

    def read_nowait(self, buffer: memoryview) -> int:
        said = frame(FIN | BINARY) * 10
        buffer[: len(said)] = said
        return len(said)


async def test_endless_frames_without_data_leave_others_their_turn() -> None:
    wire = WebSocketWire(Endless([]), b"")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wire.read_into, memoryview(bytearray(1)))
        await settled()
        tasks.cancel_scope.cancel()


# Pings


async def test_a_ping_is_answered_once_with_what_it_says() -> None:
    async with opened() as (wire, server):
        await server.sends(Ping(payload=b"are you there?"))
        assert wire.read_nowait(memoryview(bytearray(1))) is None
        await wire.write_all([memoryview(b"data")])
        await server.hears(lambda: server.data)
        assert server.heard == [Pong(b"are you there?"), BytesMessage(data=b"data")]


async def test_a_ping_is_answered_between_whole_frames() -> None:
    async with opened(buffer=SMALL) as (wire, server), anyio.create_task_group() as tasks:
        tasks.start_soon(wire.write_all, [memoryview(BULK)])
        await settled()
        await server.sends(Ping(payload=b"1"))
        assert wire.read_nowait(memoryview(bytearray(1))) is None
        await server.hears(lambda: len(server.data) == len(BULK))
        await server.hears(lambda: Pong(b"1") in server.heard)
    assert server.data == BULK


async def test_pings_that_the_server_does_not_hear_answered_cost_nothing() -> None:
    """Of many, the last is answered once it reads (RFC 6455, 5.5.3)."""
    async with opened(buffer=SMALL) as (wire, server):
        assert isinstance(wire, WebSocketWire)
        for number in range(2000):
            await server.sends(Ping(payload=b"%0125d" % number))
            assert wire.read_nowait(memoryview(bytearray(1))) is None
            assert sum(map(len, wire._unsent)) <= 131
        assert wire._unsent
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.write_all, [memoryview(b"x")])
            await server.hears(lambda: server.data)
        last = server.heard[-2:]
    assert Pong(b"%0125d" % 1999) in last
    assert len(server.heard) < 1000


# Ends


async def test_a_close_of_the_servers_ends_both_directions() -> None:
    async with opened() as (wire, server):
        await server.says(binary(b"last"))
        await server.sends(CloseConnection(code=1001))
        assert await read_to_end(wire) == b"last"
        await server.hears_all()
        assert server.closes == [1001]
        assert wire.read_nowait(memoryview(bytearray(1))) == 0
        with pytest.raises(BrokenPipeError, match="WebSocket: closed"):
            wire.write_nowait([memoryview(b"too late")])
        wire.end()
        wire.close()
        assert not await server.listens()


async def test_a_close_that_gives_a_reason_is_an_error_that_tells_it() -> None:
    """As websockify's, where the SPICE server behind it does not answer."""
    async with opened() as (wire, server):
        await server.says(binary(b"last"))
        reason = "Failed to connect\nto downstream server"
        await server.sends(CloseConnection(code=1011, reason=reason))
        assert await wire.read_into(memoryview(bytearray(100))) == len(b"last")
        for _ in range(2):
            with pytest.raises(OSError, match="WebSocket: closed with 1011 Failed") as caught:
                wire.read_nowait(memoryview(bytearray(1)))
            assert caught.value.strerror is not None
            assert caught.value.strerror.isprintable()
        await server.hears_all()
        assert server.closes == [1011]


async def test_who_has_ended_still_reads() -> None:
    async with opened() as (wire, server):
        await wire.write_all([memoryview(b"question")])
        wire.end()
        with pytest.raises(BrokenPipeError):
            wire.write_nowait([memoryview(b"too late")])
        await server.hears_all()
        assert server.data == b"question"
        await server.says(binary(b"answer"))
        await server.says(frame(FIN | CLOSE, b"\3\xe8"))
        assert await read_to_end(wire) == b"answer"


async def test_a_server_that_goes_without_a_word_has_ended() -> None:
    """libspice-server frees a client's stream without a Close."""
    async with opened() as (wire, server):
        await server.says(binary(b"last"))
        server.stream.close()
        assert wire.peer_ended()
        assert await read_to_end(wire) == b"last"


@pytest.mark.parametrize(("control", "end"), [(PING, 1), (CLOSE, 0)])
async def test_an_answer_that_nobody_takes_loses_nothing(control: int, end: int) -> None:
    async with opened() as (wire, server):
        await server.says(frame(FIN | control) + binary(b"last") * end)
        server.stream.close()
        assert await read_to_end(wire) == b"last" * end
        with pytest.raises(BrokenPipeError):
            wire.write_nowait([memoryview(b"x")])


async def test_an_end_waits_for_a_full_server_and_follows_a_whole_frame() -> None:
    async with opened(buffer=SMALL) as (wire, server):
        assert wire.write_nowait([memoryview(BULK)]) is None
        wire.end()
        await server_closes(wire, server)
    assert server.data == BULK[: 256 * 1024]
    assert server.closes == [1005]  # no code


@pytest.mark.parametrize(
    ("bad", "problem", "code"),
    [
        (frame(0x20 | FIN | BINARY), "reserved bits", 1002),
        (frame(FIN | BINARY, b"x", key=b"1234"), "is masked", 1002),
        (b"\x82\x7f" + b"\xff" * 8, "its length as 18446744073709551615", 1002),
        (frame(FIN | CLOSE, b"\0\0"), "valid status code", 1002),
        (frame(FIN | TEXT, b"hello"), "a text message", 1003),
    ],
)
async def test_what_breaks_the_protocol_breaks_the_wire(
    bad: bytes, problem: str, code: int
) -> None:
    async with opened() as (wire, server):
        await server.says(binary(b"whole") + bad)
        assert await read_exactly(wire, 5) == b"whole"
        for _ in range(2):
            with pytest.raises(OSError, match=f"WebSocket: .*{problem}") as caught:
                wire.read_nowait(memoryview(bytearray(1)))
            assert caught.value.errno == errno.EPROTO
        await server.hears_all()
        assert server.closes == [code]


async def test_text_is_no_spice() -> None:
    async with opened() as (wire, server):
        await server.sends(TextMessage(data="hello"))
        with anyio.fail_after(PATIENCE), pytest.raises(OSError, match="a text message"):
            await wire.read_into(memoryview(bytearray(1)))
