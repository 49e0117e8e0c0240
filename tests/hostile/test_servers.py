"""Servers that speak well up to some step and then lie: each lie ends in one line that says so,
with an exit code of the table, or the bridge goes on; nothing hangs, grows or stays open."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import lz4.block
import pytest
from anyio.abc import SocketStream

from spicebridge import (
    ChannelBusyError,
    ChannelClosedError,
    ChannelNotFoundError,
    ConnectError,
    ProtocolError,
    SessionLostError,
    SpicebridgeError,
    UnixAddress,
    run_bridges,
)
from spicebridge.cli.spec import parse_custom_channel
from spicebridge.protocol.constants import ChannelType, CommonCap, Msg, PortEventType
from spicebridge.protocol.messages import messages_from_server
from spicebridge.transport.target import Target
from tests.bridge.tools import open_fds
from tests.cli.fake_server import message
from tests.cli.tools import Screen, connect, read_exactly, run, until
from tests.conftest import PATIENCE, Spicebridge
from tests.hostile.lying_server import (
    SERVED,
    Liar,
    Step,
    Tell,
    endless,
    link_reply,
    listed,
    lying_server,
    main_init,
    notify,
    port_init,
    then_silence,
)
from tests.protocol.frames import frame
from tests.protocol.wire import PUBKEY

Start = Callable[..., Spicebridge]

SOON: Final = 0.4
LATE: Final = 10.0
"""Seconds that a step of reaching a server may take: where it never answers, and where it does."""

ALL: Final = (2**32 - 1,)


@dataclass
class Met:
    """What became of a bridge.

    Attributes:
        error: how it ended; None if by itself.
        data: what its application has got.
    """

    error: SpicebridgeError | None
    data: bytes


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that was closed is no other client's for long, and a lost session shows at once."""
    monkeypatch.setattr("spicebridge.client.session.BUSY_TIMEOUT", 0.01)
    monkeypatch.setattr("spicebridge.client.session._NOTICE", 0.01)


async def meet(
    folder: Path, liar: Liar, spec: str = "channelid=port", *, timeout: float = LATE
) -> Met:
    """Bridges the channel of a liar to an application that reads to the end, in this process."""
    path = folder / "app"
    data = bytearray()
    error: SpicebridgeError | None = None
    stop = anyio.Event()

    async def application(stream: SocketStream) -> None:
        async with stream:
            async for piece in stream:
                data.extend(piece)

    async def stop_when_digested() -> None:
        await anyio.to_thread.run_sync(liar.digested.wait, abandon_on_cancel=True)
        if liar.content:
            stop.set()

    with lying_server(folder, liar) as uri, anyio.fail_after(PATIENCE):
        async with (
            await anyio.create_unix_listener(path) as listener,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(listener.serve, application)
            if liar.keeps:
                tasks.start_soon(stop_when_digested)
            try:
                await run_bridges(
                    Target(UnixAddress(uri.removeprefix("spice+unix://"))),
                    [parse_custom_channel(f"{spec},unixsocket={path},mode=connect")],
                    timeout=timeout,
                    stop=stop,
                )
            except SpicebridgeError as caught:
                error = caught
            liar.digested.set()
            tasks.cancel_scope.cancel()
    path.unlink()
    return Met(error, bytes(data))


def check(met: Met, *kinds: type[SpicebridgeError]) -> None:
    """Sees to it that a bridge ended with an error of one of these kinds; with none, well."""
    if not kinds:
        assert met.error is None, f"{met.error!r}"
        assert met.data == SERVED
        return
    assert type(met.error) in kinds, f"{met.error!r}, {met.data!r}"
    assert str(met.error).isprintable()
    assert len(str(met.error)) < 2000
    assert SERVED.startswith(met.data), "it has got what nobody sent"


@contextmanager
def nothing_left_open() -> Iterator[None]:
    """Sees to it that no descriptor stays open."""
    before = open_fds()
    yield
    assert open_fds() == before


def rsa_key(bits: int, exponent: int) -> bytes:
    """A key of so many bits in the 162 bytes that a link reply has for it, cut or filled."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    numbers = RSAPublicNumbers(exponent, (1 << (bits - 1)) | (1 << (bits // 2)) | 1)
    der = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der[:162].ljust(162, b"\0")


def ticket_key(exponent: int) -> bytes:
    """A key of the right size with another exponent."""
    return PUBKEY[:-3] + exponent.to_bytes(3)


def unfolds(data: bytes, size: int) -> bytes:
    """COMPRESSED_DATA that claims to unfold to `size` bytes."""
    block = lz4.block.compress(data, store_size=False)
    return message(Msg.COMPRESSED_DATA, struct.pack("<BI", 1, size) + block)


def set_ack(window: int, generation: int = 1) -> bytes:
    """SET_ACK."""
    return message(Msg.SET_ACK, struct.pack("<II", generation, window))


PING = message(Msg.PING, bytes(12))
LARGE_PING = message(Msg.PING, bytes(4 << 20))
MOUSE = message(105, bytes(4))
EMPTY = message(Msg.DATA)
MIGRATE = {
    # the lies about MIGRATE_BEGIN, SWITCH_HOST and what follows them come here, with the migration
    "MIGRATE_DATA of 2^32-1": (Step.LATER, message(Msg.MIGRATE_DATA, size=2**32 - 1)),
    "MIGRATE_DATA of 2^32-1 on the channel": (
        Step.BYTES,
        message(Msg.MIGRATE_DATA, size=2**32 - 1),
    ),
    "MIGRATE too short": (Step.LATER, message(Msg.MIGRATE, b"\1\0\0")),
    "MIGRATE too long": (Step.BYTES, message(Msg.MIGRATE, bytes(5))),
}

BROKEN: dict[str, tuple[Step, bytes]] = {
    # the link
    "reply of 2^32-1": (Step.REPLY, link_reply(size=2**32 - 1)),
    "reply of 2^31": (Step.CHANNEL_REPLY, link_reply(size=2**31)),
    "reply of 0": (Step.REPLY, link_reply(size=0)),
    "reply without capabilities": (Step.REPLY, link_reply(caps=())),
    "reply one byte too short": (Step.REPLY, link_reply(size=181)),
    "capabilities inside the header": (Step.REPLY, link_reply(offset=177)),
    "capabilities at 0": (Step.CHANNEL_REPLY, link_reply(offset=0)),
    "capabilities one byte beyond": (Step.REPLY, link_reply(offset=179)),
    "capabilities at 2^32-1": (Step.REPLY, link_reply(offset=2**32 - 1)),
    "2^32-1 words of common capabilities": (Step.REPLY, link_reply(counts=(2**32 - 1, 0))),
    "2^32-1 words of channel capabilities": (Step.REPLY, link_reply(counts=(1, 2**32 - 1))),
    "2^30 words, 2^32 bytes": (Step.REPLY, link_reply(counts=(2**30, 2**30))),
    "one word too many": (Step.CHANNEL_REPLY, link_reply(counts=(1, 1))),
    "a key of zeros": (Step.REPLY, link_reply(key=bytes(162))),
    "a key of ones": (Step.REPLY, link_reply(key=b"\xff" * 162)),
    "a key of 512 bits": (Step.REPLY, link_reply(key=rsa_key(512, 65537))),
    "a key of 4096 bits": (Step.REPLY, link_reply(key=rsa_key(4096, 65537))),
    "a huge exponent": (Step.REPLY, link_reply(key=rsa_key(1024, 2**1000 + 1))),
    "an exponent of 1": (Step.REPLY, link_reply(key=ticket_key(1))),
    "an even exponent": (Step.REPLY, link_reply(key=ticket_key(65536))),
    # counts
    "a list of one too few": (Step.LIST, listed((10, 0), (10, 1), count=1)),
    "a list of one too many": (Step.LIST, listed((10, 0), count=2)),
    "a list of 2^31": (Step.LIST, listed((10, 0), count=2**31)),
    "a list of 2^32-1": (Step.LIST, listed((10, 0), count=2**32 - 1)),
    "a list of 10^6 that is not there": (Step.LIST, listed((10, 0), count=10**6)),
    "a list of 10^6": (Step.LIST, listed(*[(10, 0)] * 10**6)),
    "a list of 10^6 later": (Step.LATER, listed(*[(10, 0)] * 10**6)),
    "waits of one too few": (Step.BYTES, message(Msg.WAIT_FOR_CHANNELS, b"\1" + bytes(20))),
    "waits of one too many": (Step.LATER, message(Msg.WAIT_FOR_CHANNELS, b"\2" + bytes(10))),
    "a text of one too many": (Step.LATER, notify(b"hello", length=6)),
    "a text of 2^32-1": (Step.LATER, notify(b"hello", length=2**32 - 1)),
    "a text of 4097": (Step.LATER, notify(bytes(4097))),
    # the name of a port: its size, its offset
    "a name of 0 bytes": (Step.NAME, message(Msg.PORT_INIT, struct.pack("<IIB", 0, 9, 1))),
    "a name of 1025 bytes": (Step.NAME, port_init(b"x" * 1024)),
    "a name of 2^32-1": (
        Step.NAME,
        message(Msg.PORT_INIT, struct.pack("<IIBB", 2**32 - 1, 9, 1, 0)),
    ),
    "a name in the header": (Step.NAME, message(Msg.PORT_INIT, struct.pack("<IIBB", 1, 8, 1, 0))),
    "a name at the end": (Step.NAME, message(Msg.PORT_INIT, struct.pack("<IIBB", 1, 10, 1, 0))),
    "a name at 2^32-1": (
        Step.NAME,
        message(Msg.PORT_INIT, struct.pack("<IIBB", 1, 2**32 - 1, 1, 0)),
    ),
    "an event of 3": (Step.BYTES, message(Msg.PORT_EVENT, b"\3")),
    # LZ4
    "1 MiB and 1 claimed": (Step.BYTES, unfolds(b"x", (1 << 20) + 1)),
    "2^32-1 claimed": (Step.BYTES, unfolds(b"x", 2**32 - 1)),
    "less claimed": (Step.BYTES, unfolds(bytes(1000), 999)),
    "more claimed": (Step.BYTES, unfolds(bytes(1000), 1001)),
    "0 claimed": (Step.BYTES, unfolds(bytes(1000), 0)),
    "no block at all": (Step.BYTES, message(Msg.COMPRESSED_DATA, struct.pack("<BI", 1, 0))),
    "no LZ4": (Step.BYTES, message(Msg.COMPRESSED_DATA, struct.pack("<BI", 1, 9) + b"\xff" * 9)),
    "compressed with nothing": (Step.BYTES, message(Msg.COMPRESSED_DATA, bytes(9))),
    # DATA
    "DATA of 2^32-1": (Step.BYTES, message(Msg.DATA, SERVED, size=2**32 - 1)),
    **MIGRATE,
}


@pytest.mark.parametrize(("step", "lie"), BROKEN.values(), ids=[*BROKEN])
async def test_a_lie_ends_in_one_error(short_tmp: Path, step: Step, lie: bytes) -> None:
    liar = Liar(step, lie, keeps=step is Step.LATER)
    with nothing_left_open():
        check(await meet(short_tmp, liar), ProtocolError)


CUT = {
    "DATA that breaks off": message(Msg.DATA, SERVED, size=2**20),
    "a header that breaks off": b"\x65",
}


@pytest.mark.parametrize("lie", CUT.values(), ids=[*CUT])
async def test_a_channel_that_breaks_off_is_no_success(short_tmp: Path, lie: bytes) -> None:
    with nothing_left_open():
        met = await meet(short_tmp, Liar(Step.BYTES, lie))
    check(met, ProtocolError, ChannelClosedError)


@pytest.mark.parametrize("kind", [ChannelType.MAIN, ChannelType.PORT], ids=["main", "port"])
@pytest.mark.parametrize("wrong", ["0", "one too few", "one too many", "2^31", "2^32-1"])
async def test_a_size_that_no_such_message_has(
    short_tmp: Path, kind: ChannelType, wrong: str
) -> None:
    """Of every message that a server may send; those that may have any size have a bound."""
    step = Step.LATER if kind == ChannelType.MAIN else Step.BYTES
    for number, message_kind in messages_from_server(kind).items():
        sizes = {
            "0": 0,
            "one too few": message_kind.minimum - 1,
            "one too many": message_kind.maximum + 1,
            "2^31": 2**31,
            "2^32-1": 2**32 - 1,
        }
        size = sizes[wrong]
        if size < 0 or message_kind.minimum <= size <= message_kind.maximum:
            continue
        liar = Liar(step, message(number, size=size), keeps=step is Step.LATER)
        check(await meet(short_tmp, liar), ProtocolError)


HARMLESS: dict[str, tuple[Step, bytes]] = {
    "session 2^32-1": (Step.INIT, main_init(2**32 - 1)),
    "MAIN_INIT twice": (Step.INIT, main_init(7) + main_init(8)),
    "MAIN_INIT twice, without a session": (Step.INIT, main_init(7) + main_init(0)),
    "MAIN_INIT later": (Step.LATER, main_init(0)),
    "MAIN_INIT later, with another session": (Step.LATER, main_init(9)),
    "the same channel twice": (Step.LIST, listed((10, 0), (10, 0), (1, 0), (10, 0))),
    "channels of no type": (Step.LIST, listed((0, 0), (255, 255), (10, 0))),
    "4096 channels": (Step.LIST, listed(*[(10, number % 256) for number in range(4096)])),
    "the list again and again": (Step.LATER, listed((10, 5), (11, 0)) * 1000),
    "an empty list later": (Step.LATER, listed()),
    "large capabilities": (
        Step.REPLY,
        link_reply(counts=(32, 32), caps=(2**32 - 1 - (1 << CommonCap.AUTH_SASL), *ALL * 63)),
    ),
    "capabilities far behind": (Step.REPLY, link_reply(offset=186, caps=(0, 0, 11))),
    "pings": (Step.LATER, PING * 10_000),
    "pings on the channel": (Step.NAME, PING * 10_000 + port_init("p")),
    "a ping of 4 MiB": (Step.LATER, LARGE_PING),
    "a ping of 4 MiB on the channel": (Step.NAME, LARGE_PING + port_init("p")),
    "an ACK for each message": (
        Step.NAME,
        set_ack(1) + port_init("p") + PING * 1000 + EMPTY * 1000,
    ),
    "an ACK window of 0": (Step.NAME, set_ack(1) + set_ack(0) + port_init("p") + EMPTY * 1000),
    "an ACK window of 2^32-1": (Step.NAME, set_ack(2**32 - 1) + port_init("p") + EMPTY * 1000),
    "SET_ACK again and again": (Step.LATER, set_ack(1) * 10_000),
    "DATA of 0 bytes": (Step.NAME, port_init("p") + EMPTY * 100_000),
    "nothing, compressed": (Step.NAME, port_init("p") + unfolds(b"", 0) * 1000),
    "no NUL behind a name": (
        Step.NAME,
        message(Msg.PORT_INIT, struct.pack("<IIB", 1, 9, 1) + b"p"),
    ),
    "a name far behind": (
        Step.NAME,
        message(Msg.PORT_INIT, struct.pack("<IIB", 2, 1022, 1) + bytes(1013) + b"p\0"),
    ),
    "another name later": (Step.NAME, port_init("p") + port_init("q") * 1000),
    "WAIT_FOR_CHANNELS": (
        Step.NAME,
        port_init("p") + message(Msg.WAIT_FOR_CHANNELS, b"\xff" + b"\xff" * 2550),
    ),
    "WAIT_FOR_CHANNELS on main": (Step.LATER, message(Msg.WAIT_FOR_CHANNELS, b"\0")),
    "DISCONNECTING that does not": (Step.LATER, message(Msg.DISCONNECTING, b"\xff" * 12)),
    "a text without its NUL": (Step.LATER, notify(b"\xff\xfe")),
    "no text": (Step.LATER, notify(b"")),
}


@pytest.mark.parametrize(("step", "lie"), HARMLESS.values(), ids=[*HARMLESS])
async def test_a_lie_that_costs_nothing_is_passed_over(
    short_tmp: Path, step: Step, lie: bytes
) -> None:
    with nothing_left_open():
        check(await meet(short_tmp, Liar(step, lie)))


SILENT: dict[str, tuple[Step, bytes | Tell]] = {
    "no reply": (Step.REPLY, then_silence(b"")),
    "half a reply": (Step.CHANNEL_REPLY, then_silence(link_reply()[:100])),
    "no result": (Step.RESULT, then_silence(b"\0\0\0")),
    "no MAIN_INIT": (Step.INIT, then_silence(PING)),
    "session 0": (Step.INIT, main_init(0)),
    "no list": (Step.LIST, then_silence(PING)),
    "half a list": (Step.LIST, then_silence(listed((10, 0))[:-1])),
    "no name": (Step.NAME, then_silence(PING)),
    "a size that is no lie yet": (Step.INIT, then_silence(message(105, size=4 << 20))),
    "endless pings before MAIN_INIT": (Step.INIT, endless(PING, reads=True)),
    "endless pings for a list": (Step.LIST, endless(PING, reads=False)),
    "endless pings before a name": (Step.NAME, endless(PING, reads=True)),
    "endless large pings before a name": (Step.NAME, endless(LARGE_PING, reads=False)),
    "endless noise before MAIN_INIT": (Step.INIT, endless(MOUSE, reads=False)),
    "endless noise for a list": (Step.LIST, endless(MOUSE, reads=False)),
    "endless SET_ACK before a name": (Step.NAME, endless(set_ack(1), reads=True)),
}


@pytest.mark.parametrize(("step", "lie"), SILENT.values(), ids=[*SILENT])
async def test_a_server_that_does_not_come_to_the_point_has_its_time(
    short_tmp: Path, step: Step, lie: bytes | Tell
) -> None:
    """However much it says meanwhile."""
    with nothing_left_open():
        met = await meet(short_tmp, Liar(step, lie), timeout=SOON)
    check(met, ConnectError)
    assert f"no answer within {SOON} seconds" in str(met.error)


REFUSED = (
    ProtocolError,
    SessionLostError,
    ConnectError,
    ChannelBusyError,
    ChannelClosedError,
)


async def test_a_server_that_hangs_up_after_any_byte(short_tmp: Path, anyio_backend: str) -> None:
    """Of a whole good conversation; after every other byte on each loop."""
    whole = Liar()
    check(await meet(short_tmp, whole))
    length = sum(len(whole._truth(step, 0)) for step in Step)
    with nothing_left_open():
        for cut in range(1 + (anyio_backend == "trio"), length, 2):
            met = await meet(short_tmp, Liar(cut=cut))
            given = SERVED[: max(0, cut - length + len(SERVED))]
            if cut == length - len(message(Msg.DATA, SERVED)):  # a good end, of nothing
                assert met == Met(None, b"")
                continue
            check(met, *REFUSED)
            assert met.data == given


async def test_a_server_that_says_one_byte_at_a_time(short_tmp: Path) -> None:
    for kind in (ChannelType.PORT, ChannelType.WEBDAV):
        check(
            await meet(
                short_tmp, Liar(piece=1, kind=kind), f"channelid={kind.name.lower()},demux=off"
            )
        )


# Streams on one channel


MUX: dict[str, tuple[bytes, bytes]] = {
    "65535 bytes that break off": (frame(1, bytes(65535))[:20], bytes(10)),
    "a header that breaks off": (frame(1, b"a") + frame(2, b"b")[:9], b"a"),
    "the least and the greatest id": (frame(-(2**63), b"a") + frame(2**63 - 1, b"b"), b"ab"),
    "bytes behind the end": (frame(1, b"a") + frame(1, b"") * 2 + frame(1, b"b"), b"ab"),
    "ends of 10^5 streams that never were": (
        b"".join(frame(number, b"") for number in range(1, 10**5)) + frame(1, b"a"),
        b"a",
    ),
    "10^4 streams": (b"".join(frame(number, b"x") for number in range(10**4)), b"xxxx"),
}


@pytest.mark.parametrize(("lie", "data"), MUX.values(), ids=[*MUX])
async def test_frames_that_lie_cost_their_own_streams_alone(
    short_tmp: Path, lie: bytes, data: bytes
) -> None:
    says = b"".join(
        message(Msg.DATA, lie[start : start + 65536]) for start in range(0, len(lie), 65536)
    )
    liar = Liar(Step.BYTES, says, kind=ChannelType.WEBDAV, keeps=True)
    with nothing_left_open():
        met = await meet(short_tmp, liar, "channelid=webdav,max-streams=4")
    assert met.error is None
    assert sorted(met.data) == sorted(data)


# The executable


@pytest.fixture
def quiet_stdin() -> Iterator[int]:
    """A standard input that neither says anything nor ends."""
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


def shown_safely(text: str) -> str:
    """A text that a terminal only shows."""
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    return text


@pytest.mark.parametrize(
    "name",
    [
        "a key of 4096 bits",
        "a list of 10^6 later",
        "more claimed",
        "DATA of 2^32-1",
        "MIGRATE_DATA of 2^32-1",
    ],
)
def test_the_executable_tells_a_lie_in_one_line(
    short_tmp: Path, quiet_stdin: int, name: str
) -> None:
    step, lie = BROKEN[name]
    with lying_server(short_tmp, Liar(step, lie, keeps=step is Step.LATER)) as uri:
        finished = run(uri, "--custom-channel", "stdio,channelid=port", stdin=quiet_stdin)
    assert finished.code == ProtocolError.exit_code, finished
    (error,) = finished.errors()
    assert finished.stderr.count("\n") == 1, finished.stderr
    assert "at byte" in error
    shown_safely(finished.stderr)
    assert SERVED.startswith(finished.stdout)


def test_a_session_that_breaks_while_bytes_flow_is_no_success(
    spicebridge: Start, short_tmp: Path, quiet_stdin: int
) -> None:
    """Though the channel is there, and its application is drained."""
    served = threading.Event()

    def lie(client: socket.socket) -> None:
        assert served.wait(PATIENCE)
        client.sendall(message(0xBEEF))

    with lying_server(short_tmp, Liar(Step.LATER, lie, keeps=True)) as uri:
        args = (uri, "--custom-channel", "stdio,channelid=port")
        bridge = spicebridge(*args, stdin=quiet_stdin, stdout=subprocess.PIPE)
        assert bridge.process.stdout is not None
        assert bridge.process.stdout.read(len(SERVED)) == SERVED
        served.set()
        assert bridge.wait() == ProtocolError.exit_code
    assert shown_safely(bridge.stderr()).count("\n") == 1
    assert "at byte" in bridge.stderr()


MOST: Final = 64 << 20
"""Bytes of memory that no server makes us take; 26 MiB are there at the start."""


def peak(running: Spicebridge) -> int:
    """The most memory that it has had resident, in bytes; 0 once it has ended."""
    try:
        status = Path(f"/proc/{running.process.pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def peak_to_the_end(running: Spicebridge) -> int:
    """The same, once it has ended."""
    seen = 0

    def ended() -> bool:
        nonlocal seen
        seen = max(seen, peak(running))
        return running.process.poll() is not None

    until("it has ended", ended)
    return seen


ENDLESS_FIRST: dict[str, tuple[Step, Tell]] = {
    "pings before MAIN_INIT, read": (Step.INIT, endless(PING, reads=True)),
    "noise before MAIN_INIT": (Step.INIT, endless(MOUSE, reads=False)),
    "pings before a name, read": (Step.NAME, endless(PING, reads=True)),
    "large pings before a name": (Step.NAME, endless(LARGE_PING, reads=False)),
}


@pytest.mark.parametrize(("step", "lie"), ENDLESS_FIRST.values(), ids=[*ENDLESS_FIRST])
def test_who_talks_without_end_before_anything_works_has_its_time(
    spicebridge: Start, short_tmp: Path, quiet_stdin: int, step: Step, lie: Tell
) -> None:
    with lying_server(short_tmp, Liar(step, lie)) as uri:
        args = (uri, "--connect-timeout", "1", "--custom-channel", "stdio,channelid=port")
        bridge = spicebridge(*args, ready=False, stdin=quiet_stdin)
        assert peak_to_the_end(bridge) < MOST
    assert bridge.wait() == ConnectError.exit_code
    assert shown_safely(bridge.stderr()).count("\n") == 1
    assert "no answer within 1 seconds" in bridge.stderr()


OPENED: Final = message(Msg.PORT_EVENT, bytes((PortEventType.OPENED,)))

ENOUGH: Final = 1.0
"""Seconds of endless talk that show whether memory grows: some 100 MiB of it."""

ENDLESS: dict[str, tuple[Step, Tell]] = {
    "pings, never read": (Step.LATER, endless(PING, reads=False)),
    "pings of 4 MiB, never read": (Step.LATER, endless(LARGE_PING, reads=False, mebibytes=64)),
    "noise": (Step.LATER, endless(MOUSE, reads=False)),
    "SET_ACK, never read": (Step.LATER, endless(set_ack(1), reads=False)),
    "texts and announcements": (
        Step.LATER,
        endless(notify(b"beware"), message(Msg.DISCONNECTING, bytes(12)), reads=False),
    ),
    "ACKs for DATA of 0 bytes, never read": (
        Step.BYTES,
        endless(set_ack(1), EMPTY * 10_000, reads=False),
    ),
    "pings on the channel": (Step.BYTES, endless(PING, reads=True)),
    "events of the port": (Step.BYTES, endless(OPENED, reads=False)),
}


@pytest.mark.parametrize(("step", "lie"), ENDLESS.values(), ids=[*ENDLESS])
def test_who_talks_without_end_costs_no_memory_and_no_signal(
    spicebridge: Start, short_tmp: Path, quiet_stdin: int, step: Step, lie: Tell
) -> None:
    liar = Liar(step, lie, keeps=True)
    with lying_server(short_tmp, liar) as uri:
        spec = "stdio,channelid=port"
        bridge = spicebridge(uri, "--custom-channel", spec, stdin=quiet_stdin)
        liar.digested.wait(ENOUGH)
        assert bridge.process.poll() is None, bridge.stderr()
        bridge.process.send_signal(signal.SIGTERM)
        assert peak_to_the_end(bridge) < MOST
    assert bridge.wait() == 0
    assert len(shown_safely(bridge.stderr())) < 100_000


MANY: Final = 50_000


def test_streams_without_end_cost_no_memory(
    spicebridge: Start, short_tmp: Path, quiet_stdin: int
) -> None:
    """Each that is one too many is refused; that is told in a line a second."""
    frames = b"".join(frame(number, b"x") for number in range(MANY))
    said = (frames[at : at + 65536] for at in range(0, len(frames), 65536))
    lie = b"".join(message(Msg.DATA, each) for each in said)
    told = endless(lie, reads=True, mebibytes=len(lie) // 2**20 + 1)
    liar = Liar(Step.BYTES, told, kind=ChannelType.WEBDAV, keeps=True)
    with lying_server(short_tmp, liar) as uri:
        spec = "channelid=webdav,exec=cat,max-streams=4"
        bridge = spicebridge(uri, "--custom-channel", spec, stdin=quiet_stdin)
        assert liar.digested.wait(PATIENCE)
        assert liar.content
        assert peak(bridge) < MOST
        assert bridge.stop() == 0
    assert len(shown_safely(bridge.stderr())) < 100_000


def test_bombs_without_end_cost_a_bounded_memory(
    spicebridge: Start, short_tmp: Path, quiet_stdin: int
) -> None:
    """Each is 4 KiB that unfold to 1 MiB."""
    bomb = unfolds(bytes(1 << 20), 1 << 20)
    liar = Liar(Step.BYTES, endless(bomb, reads=False), keeps=True)
    with lying_server(short_tmp, liar) as uri:
        spec = "stdio,channelid=port"
        bridge = spicebridge(uri, "--custom-channel", spec, stdin=quiet_stdin)
        liar.digested.wait(ENOUGH)
        bridge.process.send_signal(signal.SIGTERM)
        assert peak_to_the_end(bridge) < MOST
    shown_safely(bridge.stderr())


# What a terminal is shown

HOSTILE: Final[dict[str, bytes]] = {
    "clears the screen": b"\x1b[2J\x1b[H",
    "names the window": b"\x1b]0;owned\x07",
    "rings": b"\a\b\x7f",
    "forges a line": b"a\r\n12:00:00 ERROR x: forged\n",
    "C1 controls": "\x9b2J\x9d0;owned\x9c".encode(),
    "C1 controls, raw": b"\x9b2J\x9d0;owned\x9c",
    "turns the order": "\u202egnp.exe\u2066\u200f".encode(),
    "no UTF-8": b"\xff\xfe\xed\xa0\x80",
    "long": b"x" * 1023,
    "empty": b"",
    "a path": b"../../etc/passwd",
    "markup": b"[bold]x[/bold][link=http://x]y[/link]:smile:",
    "a format": b"%s%n{0}",
}

EVERYTHING: Final = b"".join(each for each in HOSTILE.values() if len(each) < 100)


def as_read(name: bytes) -> str | None:
    """What a name is to whoever reads JSON."""
    return name.decode(errors="replace") or None


def test_a_list_shows_hostile_names_as_text(short_tmp: Path) -> None:
    names = tuple(HOSTILE.values())
    with lying_server(short_tmp, Liar(names=names)) as uri:
        table = run("list", uri)
        whole = run("list", "--json", uri)
    for finished in (table, whole):
        assert finished.code == 0, finished
        assert finished.stderr == ""
    lines = shown_safely(table.stdout.decode()).splitlines()
    assert len(lines) == 1 + len(names)
    assert any(r"\x1b]0;owned\x07" in line for line in lines)
    text = whole.stdout.decode("ascii")
    shown_safely(text)
    assert [row["port"] for row in json.loads(text)] == [as_read(name) for name in names]


def test_an_error_names_hostile_names_as_text(short_tmp: Path) -> None:
    """And not more of them than a person could read."""
    names = tuple(HOSTILE.values()) * 10
    with lying_server(short_tmp, Liar(names=names)) as uri:
        finished = run(uri, "--custom-channel", f"unixsocket={short_tmp}/s,port=mine")
    assert finished.code == ChannelNotFoundError.exit_code, finished
    (error,) = finished.errors()
    assert finished.stderr.count("\n") == 1
    assert r"\x1b]0;owned\x07" in error
    assert "and 110 more" in error
    assert len(shown_safely(error)) < 2000


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logs_and_the_status_show_hostile_names_and_texts_as_text(
    spicebridge: Start, short_tmp: Path, quiet_stdin: int, log_format: str
) -> None:
    liar = Liar(Step.LATER, notify(EVERYTHING), names=(EVERYTHING,), keeps=True)
    status = Path(os.environ["XDG_RUNTIME_DIR"]) / "spicebridge"
    with lying_server(short_tmp, liar) as uri:
        spec = f"channelid=port,unixsocket={short_tmp}/s"
        args = (uri, "-v", "--log-format", log_format, "--custom-channel", spec)
        bridge = spicebridge(*args, stdin=quiet_stdin)
        with connect(short_tmp / "s") as app:
            assert read_exactly(app, len(SERVED)) == SERVED
            with connect(status / str(bridge.process.pid)) as asking:
                asking.sendall(b"channels\n")
                document = b"".join(iter(lambda: asking.recv(65536), b"")).decode("ascii")
            listed_by_it = run("list", uri)
        until("it has told of the text", lambda: "the server says" in bridge.stderr())
        assert bridge.stop() == 0
    shown_safely(bridge.stderr())
    assert (r"\x1b" if log_format == "text" else r"\u001b") in bridge.stderr()
    shown_safely(document)
    (offered,) = json.loads(document)["channels"]
    assert offered["info"]["port"]["name"] == as_read(EVERYTHING)
    shown_safely(listed_by_it.stdout.decode())
    assert r"\x1b]0;owned\x07" in listed_by_it.stdout.decode()


def test_the_live_line_and_what_is_above_it_show_hostile_texts_as_text(short_tmp: Path) -> None:
    liar = Liar(Step.LATER, notify(EVERYTHING), names=(EVERYTHING,), keeps=True)
    with Screen() as screen, lying_server(short_tmp, liar) as uri:
        spec = f"channelid=port,attach=always,unixsocket={short_tmp}/s"
        with screen.run(uri, "--custom-channel", spec) as process:
            screen.until(b"the server says")
            screen.until(b" linked")
            process.send_signal(signal.SIGTERM)
            screen.until_ended(process)
    for each in (b"\x1b[2J", b"\x1b[H", b"\x1b]", b"\x07", b"\x7f", b"\x08", b"\n12:00:00 ERROR"):
        assert each not in screen.seen, screen.seen
    assert not re.search("[\x80-\x9f\u200f\u202e\u2066]", screen.seen.decode())
