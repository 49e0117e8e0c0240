"""Clients that speak well up to some step, and then lie, against our endpoint.

After each of them a good client is served, the descriptors are back where they were, what was told
is one line, and nothing of it would do something to a terminal.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import lz4.block
import pytest

from spicebridge.bridge.serving import serve_bridges
from spicebridge.cli.spec import parse_custom_channel
from spicebridge.protocol.constants import MAX_DATA, MAX_IGNORED, MAX_UNCOMPRESSED, LinkErr, Msg
from spicebridge.protocol.constants import MsgC as C
from spicebridge.server.limits import DEFAULT_LIMITS, ServerLimits
from spicebridge.transport.address import Address, TcpAddress, WebAddress
from spicebridge.transport.target import Target
from tests.bridge.tools import open_fds
from tests.bridge.tools import until as until_async
from tests.cli.tools import until, wait_event
from tests.conftest import PATIENCE, Spicebridge
from tests.hostile.client_liar import (
    MAIN,
    PORT,
    TICKET,
    USER,
    Liar,
    Lie,
    compressed,
    flood,
    hung_up,
    link_mess,
    message,
    next_message,
    receive,
    reset,
    result,
    send,
    works,
)
from tests.protocol.frames import frame
from tests.server.serving import make_quick, somewhere

MIB: Final = 1 << 20

IMPATIENT: Final = ServerLimits(login_time=0.3)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)


def channels(folder: Path) -> tuple[str, str]:
    """A port with a program for each client, and a channel of many streams."""
    return "port=org.x.0,exec=cat", f"channelid=128,demux=on,unixsocket={folder}/streams"


@asynccontextmanager
async def served(
    folder: Path,
    kind: str = "unix",
    *,
    password: str | None = None,
    limits: ServerLimits = DEFAULT_LIMITS,
) -> AsyncIterator[Address]:
    """What ``spicebridge serve`` runs, in this process."""
    listening: list[Address] = []
    ready = anyio.Event()

    def tell(target: Target, *_: object) -> None:
        assert not isinstance(target.plain, WebAddress | None)
        listening.append(target.plain)
        ready.set()

    async def serve() -> None:
        specs = [parse_custom_channel(text, serving=True) for text in channels(folder)]
        where = somewhere(kind, folder)
        await serve_bridges(where, specs, password=password, limits=limits, ready=tell)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            await ready.wait()
            yield listening[0]
            tasks.cancel_scope.cancel()


async def act(action: Callable[[Liar], Iterable[socket.socket] | None], address: Address) -> None:
    """Runs a client in a thread; the connections that it gives have to end."""

    def run() -> None:
        with Liar(address) as liar:
            for sock in action(liar) or ():
                hung_up(sock)

    await anyio.to_thread.run_sync(run)


@asynccontextmanager
async def endured(address: Address, password: str = "") -> AsyncIterator[None]:
    """Sees to it that nothing is left of what happens in the block."""
    before = open_fds()
    await anyio.to_thread.run_sync(works, address, password)
    yield
    await anyio.to_thread.run_sync(works, address, password)
    await until_async(lambda: open_fds() == before, "all descriptors are closed")


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was told, all of it fit for a terminal."""
    told = [each.getMessage() for each in caplog.records if each.name.startswith("spicebridge")]
    assert all(each.isprintable() for each in told)
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# Lies before the login


def says(said: bytes) -> Lie:
    return lambda liar: [liar.connect(said)]


U32_MAX: Final = 2**32 - 1

LINKS: Final[dict[str, Lie]] = {
    "magic": says(link_mess(magic=b"\x1b[2J")),
    "HTTP": says(b"GET /\x1b[31m HTTP/1.1\r\nHost: \x07\r\n\r\n"),
    "major 3": says(link_mess(major=3)),
    **{f"size {size}": says(link_mess(size=size)) for size in (0, 17, 4097, U32_MAX)},
    **{f"caps at {at}": says(link_mess(offset=at)) for at in (0, 17, 19, 4096, U32_MAX)},
    **{
        f"{counts[0]} and {counts[1]} words of caps": says(link_mess(counts=counts))
        for counts in ((2, 0), (0, 2), (33, 0), (2**31, 2**31), (U32_MAX, U32_MAX))
    },
    "a message cut": lambda liar: [ended(liar.connect(link_mess()[:-1]))],
    **{
        f"mechanism {number}": says(link_mess() + struct.pack("<I", number) + bytes(128))
        for number in (0, 2, U32_MAX)
    },
    "a ticket cut": lambda liar: [ended(liar.connect(link_mess() + TICKET[:-1]))],
    **{
        f"channel {kind}:{number}": says(link_mess(0, kind, number) + TICKET)
        for kind, number in ((0, 0), (MAIN, 1), (2, 0), (PORT, 1), (USER, 255), (255, 255))
    },
    **{f"session {number}": says(link_mess(number, PORT) + TICKET) for number in (0, 1, U32_MAX)},
    "main of a session that is not there": says(link_mess(7) + TICKET),
}


def ended(sock: socket.socket) -> socket.socket:
    """A connection whose client says no more."""
    sock.shutdown(socket.SHUT_WR)
    return sock


@pytest.mark.parametrize("lie", LINKS.values(), ids=[*LINKS])
async def test_who_lies_before_the_login_is_sent_away_in_one_line(
    short_tmp: Path, caplog: pytest.LogCaptureFixture, lie: Lie
) -> None:
    async with served(short_tmp) as address, endured(address):
        await act(lie, address)
    assert len(warned(caplog)) == 1


@pytest.mark.parametrize(
    "ticket",
    [bytes(128), b"\xff" * 128, random.Random(6).randbytes(128), b"\x1b[2J" * 32],
    ids=["zeros", "beyond the modulus", "random", "terminal"],
)
async def test_a_ticket_of_garbage_is_a_wrong_password(
    short_tmp: Path, caplog: pytest.LogCaptureFixture, ticket: bytes
) -> None:
    def lie(liar: Liar) -> None:
        said = hung_up(liar.connect(link_mess() + struct.pack("<I", 1) + ticket))
        assert said[-4:] == struct.pack("<I", LinkErr.PERMISSION_DENIED)

    limits = ServerLimits(guess_time=0.01)
    async with (
        served(short_tmp, password="x", limits=limits) as address,
        endured(address, "x"),
    ):
        await act(lie, address)
    assert len(warned(caplog)) == 1


SILENCES: Final[dict[str, bytes]] = {
    "nothing": b"",
    "half a header": link_mess()[:8],
    "no body": link_mess()[:16],
    "half a body": link_mess()[:30],
    "no mechanism": link_mess(),
    "half a ticket": link_mess() + TICKET[:70],
}


@pytest.mark.parametrize("said", SILENCES.values(), ids=[*SILENCES])
@pytest.mark.parametrize("drips", [False, True], ids=["silent", "dripping"])
async def test_who_does_not_come_to_the_end_of_the_login_is_sent_away(
    short_tmp: Path, caplog: pytest.LogCaptureFixture, said: bytes, drips: bool
) -> None:
    """One byte now and then wins no time."""

    def lie(liar: Liar) -> list[socket.socket]:
        sock = liar.connect(said)
        sock.settimeout(0.08)
        for byte in (link_mess() + TICKET)[len(said) :] if drips else b"":
            send(sock, bytes([byte]))
            try:
                while sock.recv(65536):
                    pass
                break
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
        sock.settimeout(PATIENCE)
        return [sock]

    async with served(short_tmp, limits=IMPATIENT) as address, endured(address):
        await act(lie, address)
    (line,) = warned(caplog)
    assert "waiting for a client to log in: no answer within 0.3 seconds" in line


async def test_a_client_that_says_one_byte_at_a_time_is_served(short_tmp: Path) -> None:
    def client(liar: Liar) -> None:
        _, session = liar.main()
        sock = liar.connect()
        for byte in link_mess(session, PORT) + TICKET + message(Msg.DATA, b"alive"):
            send(sock, bytes([byte]))
        reply = receive(sock, 16)
        receive(sock, struct.unpack_from("<I", reply, 12)[0])
        assert receive(sock, 4) == bytes(4)
        assert next_message(sock, Msg.DATA)

    async with served(short_tmp, "tcp") as address, endured(address):
        await act(client, address)


async def test_a_session_is_no_secret_that_can_be_tried_out(short_tmp: Path) -> None:
    """A number that is off by little is as wrong as any other."""

    def lie(liar: Liar) -> list[socket.socket]:
        _, session = liar.main()
        others = [session ^ 1 << bit for bit in range(32)]
        return [
            liar.connect(link_mess(each, PORT) + TICKET) for each in [*others, ~session & U32_MAX]
        ]

    async with served(short_tmp) as address, endured(address):
        await act(lie, address)


async def test_a_channel_that_somebody_has_is_nobody_elses(short_tmp: Path) -> None:
    def lie(liar: Liar) -> None:
        _, session = liar.main()
        mine = liar.link(PORT, 0, session)
        _, other = liar.main()
        for number in (session, other):
            said = hung_up(liar.connect(link_mess(number, PORT) + TICKET))
            assert said[-4:] == struct.pack("<I", LinkErr.CHANNEL_NOT_AVAILABLE)
        send(mine, message(Msg.DATA, b"x"))
        assert next_message(mine, Msg.DATA) == b"x"

    async with served(short_tmp) as address, endured(address):
        await act(lie, address)


# Lies on a channel


def on_main(said: bytes) -> Lie:
    def lie(liar: Liar) -> list[socket.socket]:
        sock, _ = liar.main()
        send(sock, said)
        return [sock]

    return lie


def on_channel(said: bytes, kind: int = PORT, *, ends: bool = False) -> Lie:
    def lie(liar: Liar) -> list[socket.socket]:
        sock = liar.channel(kind)
        send(sock, said)
        return [ended(sock) if ends else sock]

    return lie


BLOCK: Final = lz4.block.compress(bytes(5000), store_size=False)

LIES: Final[dict[str, Lie]] = {
    **{f"main: type {number}": on_main(message(number)) for number in (0, 0xBEEF, 0xFFFF)},
    "main: an endless message": on_main(message(101, size=U32_MAX)),
    "main: DATA of 2^31": on_main(message(Msg.DATA, size=2**31)),
    "main: ATTACH_CHANNELS with a body": on_main(message(C.MAIN_ATTACH_CHANNELS, b"x")),
    "main: half a PONG": on_main(message(C.PONG, bytes(11))),
    "main: an endless PONG": on_main(message(C.PONG, size=U32_MAX)),
    "main: an ACK with a body": on_main(message(C.ACK, b"\x1b[2J")),
    "main: half an ACK_SYNC": on_main(message(C.ACK_SYNC, bytes(3))),
    **{
        f"DATA of {size}": on_channel(message(Msg.DATA, size=size))
        for size in (MAX_DATA + 1, 2**31, U32_MAX)
    },
    "DATA that ends early": on_channel(message(Msg.DATA, size=9), ends=True),
    **{f"type {number}": on_channel(message(number)) for number in (0, 103, 202, 0xFFFF)},
    "COMPRESSED_DATA that is none": on_channel(compressed(b"\xff" * 99, 4096)),
    "COMPRESSED_DATA of another kind": on_channel(compressed(BLOCK, 5000, kind=2)),
    **{
        f"COMPRESSED_DATA of 5000 that says {size}": on_channel(compressed(BLOCK, size))
        for size in (0, 4999, 5001, MAX_UNCOMPRESSED, MAX_UNCOMPRESSED + 1, 2**31, U32_MAX)
    },
    "an endless COMPRESSED_DATA": on_channel(message(Msg.COMPRESSED_DATA, size=U32_MAX)),
    "an empty COMPRESSED_DATA": on_channel(message(Msg.COMPRESSED_DATA)),
    **{
        f"PORT_EVENT {body.hex() or 'empty'}": on_channel(message(C.PORT_EVENT, body))
        for body in (b"", b"\x03", b"\xff", b"\x00\x00")
    },
    "frames of zeros": on_channel(message(Msg.DATA, bytes(10_000)), USER),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=[*LIES])
async def test_who_lies_on_a_channel_loses_it_in_one_line(
    short_tmp: Path, caplog: pytest.LogCaptureFixture, lie: Lie
) -> None:
    async with served(short_tmp) as address, endured(address):
        await act(lie, address)
    assert len(warned(caplog)) == 1


STRANGE: Final[dict[str, bytes]] = {
    "ACKs nobody asked for": 1000 * message(C.ACK),
    "ACK_SYNC of nothing": message(C.ACK_SYNC, bytes(4)),
    "PONGs nobody asked for": 100 * message(C.PONG, bytes(12)) + message(C.PONG, bytes(20_000)),
    "MIGRATE_DATA": message(5, bytes(MAX_IGNORED)),
    "DISCONNECTING": message(C.DISCONNECTING, bytes(12)),
}


@pytest.mark.parametrize("said", STRANGE.values(), ids=[*STRANGE])
async def test_what_is_strange_but_allowed_changes_nothing(short_tmp: Path, said: bytes) -> None:
    def client(liar: Liar) -> None:
        main, session = liar.main()
        send(main, said + message(101, bytes(100)) + message(C.MAIN_ATTACH_CHANNELS))
        assert next_message(main, Msg.MAIN_CHANNELS_LIST)
        sock = liar.link(PORT, 0, session)
        send(sock, said + message(Msg.DATA) + 100 * message(C.PORT_EVENT, b"\x02"))
        send(sock, message(Msg.DATA, b"x"))
        assert next_message(sock, Msg.DATA) == b"x"

    async with served(short_tmp) as address, endured(address):
        await act(client, address)


async def test_frames_of_streams_that_are_not_there_are_dropped(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def client(liar: Liar) -> list[socket.socket]:
        sock = liar.channel(USER)
        lies = [frame(0, b"x"), frame(-1, b"\x1b[2J"), frame(2**63 - 1), frame(7, bytes(0xFFFF))]
        send(sock, message(Msg.DATA, b"".join(3 * lies)))
        send(sock, message(Msg.DATA, frame(9, b"x" * 99)[:50]))
        return [ended(sock)]

    async with served(short_tmp) as address, endured(address):
        await act(client, address)
    warned(caplog)


# Clients that go


@pytest.mark.parametrize("how", ["end of file", "reset"])
async def test_a_client_may_go_after_every_byte(short_tmp: Path, how: str) -> None:
    go = reset if how == "reset" else socket.socket.close

    def cut(liar: Liar) -> None:
        _, session = liar.main()
        pong = message(C.PONG, bytes(12))
        said = [
            link_mess() + TICKET + message(C.MAIN_ATTACH_CHANNELS) + pong,
            link_mess(session, PORT)
            + TICKET
            + message(C.PORT_EVENT, b"\0")
            + message(Msg.DATA, b"x"),
            link_mess(session, USER) + TICKET + message(Msg.DATA, frame(1, b"x")),
        ]
        for conversation in said:
            for count in range(len(conversation)):
                go(liar.connect(conversation[:count]))

    async with served(short_tmp, "tcp") as address, endured(address):
        await act(cut, address)


# Clients that take nothing, or never end


@pytest.mark.parametrize("where", ["main", "port", "nowhere"])
async def test_a_client_that_reads_nothing_is_sent_away_with_all_its_channels(
    short_tmp: Path, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    def client(liar: Liar) -> list[socket.socket]:
        main, session = liar.main()
        sock = liar.link(PORT, 0, session)
        if where == "main":
            flood(main, 1000 * message(C.MAIN_ATTACH_CHANNELS), 1 << 40)
        elif where == "port":
            flood(sock, message(Msg.DATA, bytes(60_000)), 1 << 40)
        return [main, sock]

    limits = ServerLimits(pong_time=0.5)
    async with served(short_tmp, limits=limits) as address, endured(address):
        await act(client, address)
    assert [line for line in warned(caplog) if "does not answer pings: disconnected" in line]


async def test_there_are_no_more_sessions_than_there_may_be(
    short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def client(liar: Liar) -> None:
        mains = [liar.main()[0] for _ in range(3)]
        said = hung_up(liar.connect(link_mess() + TICKET))
        assert result(said) == LinkErr.ERROR
        mains[0].shutdown(socket.SHUT_WR)
        hung_up(mains[0])

    async with served(short_tmp, limits=ServerLimits(sessions=3)) as address, endured(address):
        await act(client, address)
    assert "3 sessions are open: no other is let in" in warned(caplog)


# Against the executable, whose memory is its own


class Server:
    """A running ``spicebridge serve``.

    Attributes:
        address: where.
        bound: bytes that its memory may grow by, at most.
    """

    def __init__(self, running: Spicebridge) -> None:
        self._running = running
        host, _, port = str(wait_event(running, "ready")["address"]).rpartition(":")
        self.address = TcpAddress(host, int(port))
        self._proc = Path(f"/proc/{running.process.pid}")
        self._fds = self.fds()
        works(self.address)
        self.bound = 32 * MIB

    def fds(self) -> int:
        """How many descriptors it has."""
        return len(os.listdir(self._proc / "fd"))

    def memory(self, name: str) -> int:
        """VmRSS, or VmHWM, in bytes."""
        status = (self._proc / "status").read_text(encoding="utf-8")
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024

    def forget_peak(self) -> int:
        """Begins to measure the peak of its memory; returns what that is now (proc(5))."""
        (self._proc / "clear_refs").write_text("5", encoding="utf-8")
        return self.memory("VmHWM")

    def endured(self) -> None:
        """Sees to it that it serves on, and that nothing is left."""
        for _ in range(2):
            until("all descriptors are closed", lambda: self.fds() <= self._fds)
            works(self.address)
        assert all(line.isprintable() for line in self._running.stderr().splitlines())


@pytest.fixture
def server(spicebridge: Callable[..., Spicebridge], short_tmp: Path) -> Iterator[Server]:
    words = [word for text in channels(short_tmp) for word in ("--custom-channel", text)]
    running = spicebridge("serve", "--listen", "127.0.0.1:0", "--log-format", "json", *words)
    server = Server(running)
    before = server.forget_peak()
    yield server
    server.endured()
    grown = server.memory("VmHWM") - before
    print(f"its memory grew by {grown / MIB:.1f} MiB at most")
    assert grown < server.bound
    assert running.stop() == 0


def test_the_executable_sends_liars_away(server: Server) -> None:
    for lie in [*LINKS.values(), *LIES.values()]:
        with Liar(server.address) as liar:
            for sock in lie(liar):
                hung_up(sock)


def test_thousands_of_silent_connections_keep_nobody_out(server: Server) -> None:
    with Liar(server.address) as liar:
        held: deque[socket.socket] = deque()
        for count in range(3000):
            held.append(liar.connect(link_mess()[: count % 39]))
            if len(held) > 300:
                held.popleft().close()
            if count % 1000 == 999:
                works(server.address)
                assert server.fds() < DEFAULT_LIMITS.logins + 40


def test_a_million_frames_of_streams_that_are_not_there(server: Server) -> None:
    with Liar(server.address) as liar:
        sock = liar.channel(USER)
        for first in range(0, 1_000_000, 4000):
            frames = b"".join(frame(count, b"x") for count in range(first, first + 4000))
            send(sock, message(Msg.DATA, frames))
        ended(sock)
        hung_up(sock)


@pytest.mark.parametrize("size", [5000, MAX_UNCOMPRESSED], ids=["small", "large"])
def test_a_bomb_takes_its_time_and_not_our_memory(server: Server, size: int) -> None:
    """What is read at once, 256 KiB, may unfold to 64 MiB; not more than that is held twice."""
    server.bound = 160 * MIB
    bomb = compressed(lz4.block.compress(bytes(size), store_size=False), size)
    with Liar(server.address) as liar:
        sock = liar.channel()
        flood(sock, bomb * 100, 2 * MIB)
        reset(sock)


@pytest.mark.parametrize("where", ["main", "port", "streams"])
def test_who_sends_for_ever_and_reads_nothing_does_not_fill_our_memory(
    server: Server, where: str
) -> None:
    with Liar(server.address) as liar:
        if where == "main":
            sock, said = liar.main()[0], 5000 * message(C.MAIN_ATTACH_CHANNELS)
        elif where == "port":
            sock, said = liar.channel(), message(Msg.DATA, bytes(60_000))
        else:
            sock, said = liar.channel(USER), message(Msg.DATA, frame(1, bytes(60_000)))
        flood(sock, said, 128 * MIB)
        reset(sock)


@pytest.mark.parametrize("where", ["main", "port", "streams", "login"])
def test_who_never_ends_leaves_others_their_turn(server: Server, where: str) -> None:
    begun, enough = threading.Event(), threading.Event()

    def client() -> None:
        with Liar(server.address) as liar:
            said = 10_000 * message(C.ACK)
            sock: socket.socket | None = None
            if where == "main":
                sock = liar.main()[0]
            elif where == "port":
                sock = liar.channel(USER)
            elif where == "streams":
                sock, said = liar.channel(USER), message(Msg.DATA, 9000 * frame(1, b"x"))
            while not enough.is_set():
                if sock is None:
                    reset(liar.connect(b"no SPICE at all"))
                else:
                    send(sock, said)
                begun.set()
            if sock is not None:
                reset(sock)

    thread = threading.Thread(target=client)
    thread.start()
    try:
        assert begun.wait(PATIENCE)
        works(server.address)
    finally:
        enough.set()
        thread.join()
