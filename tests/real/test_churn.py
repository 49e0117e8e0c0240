"""Applications, channel links and sessions that come and go by the thousand, and leave nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import pytest

from spicebridge import UnixAddress, run_bridges
from spicebridge.transport.target import Target
from tests.bridge.mux_tools import nothing_left
from tests.bridge.tools import connected, echo, offering, open_fds, read_exactly, spec, until
from tests.channel.hasty import make_hasty
from tests.conftest import Spicebridge
from tests.hostile.client_liar import works
from tests.peers.faulty_relay import Fault, FaultyRelay
from tests.peers.libspice import SpiceEndpoint
from tests.real.tools import JSON_LOG, Start, Task, connection, events, receive
from tests.soak.leftovers import GROWTH, back, settled

pytestmark = pytest.mark.real_peer

NAME = "com.example.port"
APPLICATIONS = 10_000
LINKS = 1000
RECONNECTS = 200
SESSIONS = 1000
HERE = 40
"""Of each in this process, on each of the loops."""

WARM = 50
POURED = 1000
SMALL = 1024
"""KiB: ten thousand applications that leave 100 bytes behind each are seen."""


@contextmanager
def nothing_left_in(*running: Spicebridge, growth: int = GROWTH) -> Iterator[None]:
    """Processes have afterwards what they had before, in memory with so many KiB."""
    pids = [each.process.pid for each in running]
    before = settled(pids)
    yield
    for pid, then in zip(pids, before, strict=True):
        now = back(pid, then, growth)
        print(f"{then} before, {now} after")
        assert now.within(then, growth)


def ask(path: Path, number: int) -> None:
    """An application that gets back what it says."""
    with connection(path) as app:
        said = b"%d" % number
        app.sendall(said)
        assert receive(app, len(said)) == said


def test_ten_thousand_applications(spicebridge: Start, short_tmp: Path) -> None:
    path = short_tmp / "s"
    with SpiceEndpoint(f"echo:{NAME}") as endpoint:
        running = spicebridge(
            *(endpoint.uri, "-q", "--custom-channel"),
            f"channelid=port,unixsocket={path},attach=always",
        )
        for number in range(WARM):
            ask(path, number)
        with nothing_left_in(running, growth=SMALL):
            for number in range(APPLICATIONS):
                ask(path, number)
        assert running.stop() == 0


def test_a_thousand_links(spicebridge: Start, short_tmp: Path) -> None:
    path = short_tmp / "s"

    def link() -> None:
        with connection(path) as app:
            receive(app, POURED)

    with SpiceEndpoint(f"pour:{NAME}", pour=POURED) as endpoint:
        running = spicebridge(
            endpoint.uri, *JSON_LOG, "--custom-channel", f"channelid=port,unixsocket={path}"
        )
        for _ in range(WARM):
            link()
        with nothing_left_in(running):
            for _ in range(LINKS):
                link()
        assert len(events(running, "linked")) == WARM + LINKS
        assert running.stop() == 0


# Of some bridges at the same time, as each waits 0.2 seconds each time
LANES = 4
EACH = RECONNECTS // LANES
FEW = 5
CONNECTIONS = 2
"""Of a session: main, and the channel, which is linked always."""


def cut(relay: FaultyRelay, path: Path, first: int, times: int) -> None:
    """Breaks session after session; `first` of them have been there before."""
    for number in range(first, first + times):
        relay.wait_connection(CONNECTIONS * number - 1)
        for each in relay.connections[-CONNECTIONS:]:
            each.fail(Fault.CLOSE)
        relay.wait_connection(CONNECTIONS * (number + 1) - 1)
        ask(path, number)


def test_two_hundred_reconnects(spicebridge: Start, short_tmp: Path) -> None:
    ports = [f"org.x.{number}" for number in range(LANES)]
    specs = [word for port in ports for word in ("--custom-channel", f"port={port},exec=cat")]
    server = spicebridge("serve", "-q", "--listen", f"unix:{short_tmp}/spice", *specs)
    with ExitStack() as stack:
        bridges: list[Spicebridge] = []
        relays: list[tuple[FaultyRelay, Path]] = []
        for number in range(LANES):
            relay = stack.enter_context(
                FaultyRelay(f"spice+unix://{short_tmp}/spice", unix=short_tmp / f"r{number}")
            )
            path = short_tmp / f"s{number}"
            relays.append((relay, path))
            bridges.append(
                spicebridge(
                    *(relay.uri, "-q", "--reconnect=0.2", "--takeover-limit=0", "--custom-channel"),
                    f"channelid=port,instance={number},unixsocket={path},attach=always",
                )
            )

        def cut_all(first: int, times: int) -> None:
            tasks = [Task(partial(cut, *each, first, times)) for each in relays]
            for task in tasks:
                task.result()

        cut_all(1, FEW)
        with nothing_left_in(server, *bridges):
            cut_all(1 + FEW, EACH)
    for running in (*bridges, server):
        assert running.stop() == 0


def test_a_thousand_sessions_of_our_own_endpoint(spicebridge: Start, short_tmp: Path) -> None:
    """With a program for each."""
    running = spicebridge(
        *("serve", "-q", "--listen", f"unix:{short_tmp}/spice"),
        *("--custom-channel", "port=org.x.0,exec=cat"),
    )
    address = UnixAddress(f"{short_tmp}/spice")
    for _ in range(WARM):
        works(address)
    with nothing_left_in(running):
        for _ in range(SESSIONS):
            works(address)
    assert running.stop() == 0


class Here:
    """A bridge in this process, through a relay to an endpoint that is here, too.

    Attributes:
        path: where applications connect.
        relay: it.
        stop: set it to end the bridge.
        sessions: how many there have been.
    """

    def __init__(self, folder: Path, relay: FaultyRelay, attach: Literal["demand", "always"]):
        self.path = folder / "s"
        self.relay = relay
        self.stop = anyio.Event()
        self.sessions = 0
        self._attach = attach

    async def run(self) -> None:
        await run_bridges(
            Target(UnixAddress(self.relay.uri.removeprefix("spice+unix://"))),
            [spec(self.path, attach=self._attach)],
            reconnect=0.001,
            takeover_limit=0,
            stop=self.stop,
            ready=self._count,
        )

    def _count(self, *_: object) -> None:
        self.sessions += 1

    async def until_session(self, count: int) -> None:
        await until(lambda: self.sessions >= count, f"session {count}")

    async def ask(self) -> None:
        """An application that gets back what it says."""
        async with connected(self.path) as app:
            await app.send(b"alive")
            assert await read_exactly(app, 5) == b"alive"

    def _close_all(self) -> None:
        for each in self.relay.connections:
            if not each.closed:
                each.fail(Fault.CLOSE)

    async def cut(self) -> None:
        """Breaks the session, and has another one."""
        count = self.sessions
        await anyio.to_thread.run_sync(self._close_all)
        await self.until_session(count + 1)
        await self.ask()


@asynccontextmanager
async def nothing_more() -> AsyncIterator[None]:
    """There are no more tasks and descriptors afterwards than there were before."""
    tasks, fds = len(anyio.get_running_tasks()), len(open_fds())
    yield
    await until(lambda: len(anyio.get_running_tasks()) <= tasks, "tasks have ended")
    await until(lambda: len(open_fds()) <= fds, "descriptors are closed")


@pytest.mark.parametrize("attach", ["always", "demand"])
async def test_tasks_and_descriptors_in_this_process(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, attach: Literal["always", "demand"]
) -> None:
    """Of applications, links and sessions, while the bridge runs and once it has ended."""
    make_hasty(monkeypatch)
    monkeypatch.setattr("spicebridge.client.session.CLOSE_TIMEOUT", 0.01)
    async with nothing_left(), offering(short_tmp, echo) as address:
        assert isinstance(address, UnixAddress)
        with FaultyRelay(f"spice+unix://{address.path}", unix=short_tmp / "relay") as relay:
            here = Here(short_tmp, relay, attach)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(here.run)
                await here.until_session(1)
                await here.cut()  # with all that a first time makes
                async with nothing_more():
                    for _ in range(HERE):
                        await here.ask()
                async with nothing_more():
                    for _ in range(HERE):
                        await here.cut()
                here.stop.set()
