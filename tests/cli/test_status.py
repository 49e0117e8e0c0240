"""What a running spicebridge tells `spicebridge list`, and what that shows of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from spicebridge import (
    BridgeStatus,
    ChannelInfo,
    ChannelType,
    ConnectError,
    PortInfo,
    PortInit,
    ProtocolError,
    StreamCount,
    UnixAddress,
    open_session,
)
from spicebridge.cli import status
from spicebridge.cli.asking import Bridged, running_at
from spicebridge.cli.status import VERSION, Offered, StatusPage
from spicebridge.transport.target import Target
from tests.bridge.tools import offering, silent
from tests.cli.fake_server import fake_server, spice
from tests.cli.tools import (
    Screen,
    connect,
    events,
    find_events,
    read_all,
    read_exactly,
    run,
    wait_event,
)
from tests.conftest import PATIENCE, Spicebridge

Start = Callable[..., Spicebridge]


@pytest.fixture
def runtime(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An $XDG_RUNTIME_DIR of this test."""
    folder = short_tmp / "run"
    folder.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


@pytest.fixture
def uri(short_tmp: Path) -> str:
    return f"spice+unix://{short_tmp}/spice"


@pytest.fixture
def serve(spicebridge: Start, short_tmp: Path) -> Start:
    def start(*specs: str) -> Spicebridge:
        channels = [word for spec in specs for word in ("--custom-channel", spec)]
        listen = f"unix:{short_tmp}/spice"
        return spicebridge("serve", "--listen", listen, "--log-format", "json", *channels)

    return start


@pytest.fixture
def bridge(spicebridge: Start, uri: str) -> Start:
    def start(*specs: str) -> Spicebridge:
        channels = [word for spec in specs for word in ("--custom-channel", spec)]
        return spicebridge(uri, "--log-format", "json", *channels)

    return start


def rows(uri: str) -> dict[str, dict[str, Any]]:
    """The rows of `list --json` by the names of their channels."""
    finished = run("list", "--json", uri)
    assert (finished.code, finished.stderr) == (0, ""), finished
    return {f"{row['type']}:{row['id']}": row for row in json.loads(finished.stdout)}


def sessions(server: Spicebridge) -> int:
    """How many sessions clients have opened at a server by now."""
    return sum("has opened a session" in each["message"] for each in events(server))


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket that an application listens at."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.bind(str(path))
        sock.listen(100)
        yield sock


@contextmanager
def streams(guest: Path, apps: socket.socket, count: int) -> Iterator[None]:
    """Streams of a guest, each with an application that has got 1000 bytes from it."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(connect(guest)).sendall(b"x" * 1000)
            app, _ = apps.accept()
            app.settimeout(PATIENCE)
            stack.enter_context(app)
            assert read_exactly(app, 1000) == b"x" * 1000
        yield


# What list shows


def test_list_shows_streams_and_bytes_of_a_running_bridge(
    serve: Start, bridge: Start, uri: str, short_tmp: Path
) -> None:
    serve(
        f"channelid=128,demux=on,unixsocket={short_tmp}/guest",
        f"port=raw,unixsocket={short_tmp}/raw",
    )
    with listening(short_tmp / "apps") as apps:
        running = bridge(f"channelid=128,demux=on,unixsocket={short_tmp}/apps")
        with streams(short_tmp / "guest", apps, 2):
            pass
        wait_event(running, "stream-end", count=2)
        with streams(short_tmp / "guest", apps, 3):
            table = run("list", uri)
            listed = rows(uri)
    assert (table.code, table.stderr) == (0, "")
    head, port, user = (line.split() for line in table.stdout.decode().splitlines())
    assert head == ["TYPE", "ID", "PORT", "OPEN", "STREAMS", "BYTES"]
    assert user == ["128", "0", "3", "open,", "5", "in", "all", "5.0", "kB"]
    assert port == ["port", "0", "raw", "no", "0", "bytes"]
    assert listed["128:0"]["bridge"] == {
        "pid": running.process.pid,
        "end": f"unixsocket={short_tmp}/apps",
        "up": 0,
        "down": 5000,
        "streams": {"open": 3, "total": 5},
    }
    assert listed["port:0"]["bridge"]["streams"] is None


def test_list_shows_streams_of_a_running_server(serve: Start, uri: str, short_tmp: Path) -> None:
    server = serve(f"channelid=128,demux=on,unixsocket={short_tmp}/guest")
    assert rows(uri)["128:0"]["bridge"] == {
        "pid": server.process.pid,
        "end": f"unixsocket={short_tmp}/guest",
        "up": 0,
        "down": 0,
        "streams": {"open": 0, "total": 0},
    }


def test_without_a_running_spicebridge_there_are_no_columns_for_one(short_tmp: Path) -> None:
    with fake_server(short_tmp / "spice", spice()) as uri:
        assert run("list", uri).stdout.decode().splitlines()[0].split() == [
            *("TYPE", "ID", "PORT", "OPEN")
        ]
        assert rows(uri)["128:0"]["bridge"] is None


def test_a_bridge_of_another_server_is_not_shown(
    serve: Start, bridge: Start, short_tmp: Path
) -> None:
    serve("channelid=128,exec=cat")
    bridge(f"channelid=128,unixsocket={short_tmp}/s")
    with fake_server(short_tmp / "other", spice()) as other:
        assert rows(other)["128:0"]["bridge"] is None


def test_list_asks_the_running_bridge_and_opens_no_session(
    serve: Start, bridge: Start, uri: str, short_tmp: Path
) -> None:
    ports = [f"port={name},unixsocket={short_tmp}/guest-{name}" for name in "abc"]
    server = serve(*ports, "channelid=128,exec=cat")
    running = bridge(
        f"port=a,unixsocket={short_tmp}/a,on-close=keep", f"port=b,unixsocket={short_tmp}/b"
    )

    def links(channel: str) -> int:
        return len(find_events(server, "linked", channel=channel))

    with connect(short_tmp / "a") as app:
        wait_event(running, "linked", channel="port:0")
        before = {channel: links(channel) for channel in ("port:0", "port:1")}
        listed = rows(uri)
        assert {name: row["port"] for name, row in listed.items()} == {
            "port:0": "a",
            "port:1": "b",
            "port:2": "c",
            "128:0": None,
        }
        assert [listed[f"port:{number}"]["open"] for number in range(3)] == [False] * 3
        pids = [row["bridge"]["pid"] for row in listed.values()]
        assert pids == [running.process.pid] * 2 + [server.process.pid] * 2
        with connect(short_tmp / "guest-a") as guest, connect(short_tmp / "guest-c"):
            wait_event(server, "app-connected", bridge="port=c")
            guest.sendall(b"x")
            assert read_exactly(app, 1) == b"x"
            listed = rows(uri)  # what the guest did since is seen, where it is ours and where not
            assert [listed[f"port:{number}"]["open"] for number in range(3)] == [True, False, True]
            assert not any(row["busy"] for row in listed.values())
            app.sendall(b"y")
            assert read_exactly(guest, 1) == b"y"
    assert {channel: links(channel) for channel in before} == before  # they were not disturbed
    assert sessions(server) == 1


def test_list_needs_no_password_where_a_bridge_has_a_session(
    spicebridge: Start, uri: str, short_tmp: Path
) -> None:
    locked = {"SPICEBRIDGE_PASSWORD": "correct horse"}
    spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice"),
        *("--custom-channel", "channelid=128,exec=cat"),
        env=locked,
    )
    assert run("list", uri).code != 0
    spec = f"channelid=128,unixsocket={short_tmp}/s"
    spicebridge(uri, "--custom-channel", spec, env=locked)
    assert set(rows(uri)) == {"128:0"}


def test_the_live_line_shows_streams(serve: Start, uri: str, short_tmp: Path) -> None:
    guest = short_tmp / "g"
    serve(f"channelid=128,demux=on,unixsocket={guest}", "channelid=129,exec=cat")
    specs = [f"channelid=128,demux=on,unixsocket={short_tmp}/apps"]
    specs += [f"channelid=129,unixsocket={short_tmp}/s"]
    with Screen() as screen, listening(short_tmp / "apps") as apps:
        words = [word for spec in specs for word in ("--custom-channel", spec)]
        process = screen.run(uri, *words)
        try:
            screen.until(b"0 streams open, 0 in all")
            with streams(guest, apps, 1):
                screen.until(b"1 stream open, 1 in all")
            screen.until(b"0 streams open, 1 in all")
            with streams(guest, apps, 2):
                screen.until(b"2 streams open, 3 in all")
            process.send_signal(signal.SIGTERM)
            screen.until_ended(process)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 0


# Who may ask, and where


@pytest.mark.parametrize("role", ["serve", "bridge"])
def test_a_process_is_told_of_by_a_private_socket_until_it_ends(
    serve: Start, bridge: Start, runtime: Path, short_tmp: Path, role: str
) -> None:
    running = serve("channelid=128,exec=cat")
    if role == "bridge":
        running = bridge(f"channelid=128,unixsocket={short_tmp}/s")
    path = runtime / "spicebridge" / str(running.process.pid)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with connect(path) as asker:
        asker.sendall(b"\n")
        document = json.loads(read_all(asker))
    assert document.pop("bridges")[0].keys() == {
        *("name", "end", "channel", "state", "up", "down", "streams")
    }
    assert document == {
        "version": VERSION,
        "pid": running.process.pid,
        "role": role,
        "servers": [*Target(UnixAddress(f"{short_tmp}/spice")).identities],
    }
    assert running.stop() == 0
    assert not path.exists()


def test_what_a_killed_process_has_left_is_passed_over_and_removed(
    serve: Start, bridge: Start, runtime: Path, uri: str, short_tmp: Path
) -> None:
    server = serve("channelid=128,exec=cat")
    killed = bridge(f"channelid=128,unixsocket={short_tmp}/s")
    killed.stop(signal.SIGKILL)
    assert (runtime / "spicebridge" / str(killed.process.pid)).exists()
    assert rows(uri)["128:0"]["bridge"]["pid"] == server.process.pid
    assert not (runtime / "spicebridge" / str(killed.process.pid)).exists()


def test_a_process_that_is_just_starting_keeps_its_socket(
    serve: Start, runtime: Path, uri: str
) -> None:
    serve("channelid=128,exec=cat")
    path = runtime / "spicebridge" / str(os.getpid())
    with socket.socket(socket.AF_UNIX) as bound:  # and not listening yet
        bound.bind(str(path))
        rows(uri)
        assert path.exists()


def _open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def _link(folder: Path) -> None:
    (folder.parent / "private").mkdir(0o700)
    folder.symlink_to("private")


def _somebody_elses(folder: Path) -> None:
    folder.mkdir(0o700)
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(folder, 12345, 12345)


@pytest.mark.parametrize("make", [_open_to_all, _link, _somebody_elses, Path.touch])
def test_a_folder_that_is_not_ours_alone_is_not_used(
    serve: Start, runtime: Path, uri: str, make: Callable[[Path], None]
) -> None:
    folder = runtime / "spicebridge"
    make(folder)
    before = list(folder.iterdir()) if folder.is_dir() else []
    server = serve("channelid=128,exec=cat")
    assert rows(uri)["128:0"]["bridge"]["pid"] == server.process.pid  # told in the other place
    assert (list(folder.iterdir()) if folder.is_dir() else []) == before


def test_nobody_is_asked_in_such_a_folder(runtime: Path, short_tmp: Path) -> None:
    folder = runtime / "spicebridge"
    _open_to_all(folder)
    with listening(folder / str(os.getpid())) as trap, fake_server(short_tmp / "f", spice()) as uri:
        rows(uri)
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


@pytest.mark.parametrize("value", [None, "", "relative", "/nonexistent"])
def test_without_a_usable_runtime_dir_the_folder_is_in_tmp(
    serve: Start, uri: str, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR")
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    server = serve("channelid=128,exec=cat")
    path = Path(f"/tmp/spicebridge-{os.geteuid()}") / str(server.process.pid)
    assert path.is_socket()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert rows(uri)["128:0"]["bridge"]["pid"] == server.process.pid
    server.stop()
    assert not path.exists()


def test_it_runs_where_it_cannot_tell_anybody(
    spicebridge: Start, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = short_tmp / ("x" * 100)
    long.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    server = spicebridge(
        *("serve", "-vv", "--listen", f"unix:{short_tmp}/spice"),
        *("--custom-channel", "channelid=128,exec=cat"),
    )
    assert "DEBUG spicebridge: spicebridge list cannot ask this process" in server.stderr()
    assert rows(f"spice+unix://{short_tmp}/spice")["128:0"]["bridge"] is None
    assert server.stop() == 0


def test_a_hung_process_does_not_hang_list(
    serve: Start, bridge: Start, runtime: Path, uri: str, short_tmp: Path
) -> None:
    del runtime  # the next test's list must not wait for it
    server = serve("channelid=128,exec=cat")
    hung = bridge(f"channelid=128,unixsocket={short_tmp}/s")
    hung.process.send_signal(signal.SIGSTOP)
    finished = run("list", "--json", uri)
    assert finished.code == 0
    assert [row["bridge"]["pid"] for row in json.loads(finished.stdout)] == [server.process.pid]
    (line,) = finished.stderr.splitlines()
    assert f"WARNING spicebridge: pid {hung.process.pid} does not tell" in line
    hung.process.send_signal(signal.SIGCONT)
    assert hung.stop() == 0


# The page in the process of the test


HERE = UnixAddress("/here")


@asynccontextmanager
async def published(page: StatusPage, folder: Path) -> AsyncIterator[Path]:
    """A page that can be asked; gives the path of its socket."""
    async with anyio.create_task_group() as tasks:
        await tasks.start(page.run)
        yield folder / "spicebridge" / str(os.getpid())
        tasks.cancel_scope.cancel()


async def ask(path: Path, line: bytes = b"\n") -> Any:
    with anyio.fail_after(PATIENCE):
        async with await anyio.connect_unix(path) as stream:
            await stream.send(line)
            return json.loads(b"".join([piece async for piece in stream]))


async def test_a_process_that_is_starting_tells_so(runtime: Path) -> None:
    page = StatusPage()
    async with published(page, runtime) as path:
        document = await ask(path)
        assert (document["role"], document["servers"], document["bridges"]) == ("starting", [], [])
        assert await running_at(Target(HERE)) == []
        page.show(Target(HERE), [], None)
        assert [each.pid for each in await running_at(Target(HERE))] == [os.getpid()]
        assert await running_at(Target(UnixAddress("/there"))) == []


async def test_a_bridge_is_told_as_it_is_at_the_time(runtime: Path) -> None:
    page = StatusPage()
    bridged = BridgeStatus("b", "end", ChannelInfo(128, 1), streams=StreamCount())
    page.show(Target(HERE), [bridged], None)
    async with published(page, runtime):
        bridged.traffic.up, bridged.traffic.down = 1, 2
        bridged.streams = StreamCount(3, 4)
        (process,) = await running_at(Target(HERE))
    assert process.bridges == {
        ChannelInfo(128, 1): Bridged(os.getpid(), "end", 1, 2, StreamCount(3, 4))
    }


async def test_a_bridge_whose_server_is_away_has_nothing_to_tell_of_it(runtime: Path) -> None:
    page = StatusPage()
    page.show(Target(HERE), [BridgeStatus("b", "end")], None)
    async with published(page, runtime) as path:
        assert (await ask(path))["role"] == "starting"
        (process,) = await running_at(Target(HERE))
    assert (process.session, process.bridges) == (False, {})


async def test_a_bridge_whose_machine_has_moved_is_found_where_that_is(runtime: Path) -> None:
    session = SimpleNamespace(target=Target(HERE))
    page = StatusPage()
    page.show(Target(HERE), [BridgeStatus("b", "end", ChannelInfo(128, 1))], cast(Any, session))
    async with published(page, runtime):
        session.target = Target(UnixAddress("/there"))
        (process,) = await running_at(Target(UnixAddress("/there")))
        assert process.session
        assert await running_at(Target(HERE)) == []


@pytest.mark.parametrize("said", [b"", b"nonsense\n", b"x" * 64], ids=["silent", "other", "long"])
async def test_who_does_not_ask_properly_is_told_the_state(
    runtime: Path, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_SILENCE", 0.01)
    async with published(StatusPage(), runtime) as path:
        assert (await ask(path, said))["role"] == "starting"


async def test_many_who_neither_ask_nor_read_keep_nobody_from_asking(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "_SILENCE", 0.01)
    monkeypatch.setattr(status, "PATIENCE", 0.5)
    monkeypatch.setattr(status, "_AT_ONCE", 2)
    page = StatusPage()
    # far more than the kernel holds for one who does not read
    page.show(Target(HERE), [BridgeStatus("x" * 1_000_000)], None)
    async with published(page, runtime) as path:
        with ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(connect(path))
            assert (await ask(path))["servers"] == [*Target(HERE).identities]


async def test_who_goes_before_the_answer_disturbs_nobody(runtime: Path) -> None:
    async with published(StatusPage(), runtime) as path:
        for _ in range(20):
            with connect(path) as asker:
                asker.sendall(b"channels\n")
        assert (await ask(path))["role"] == "starting"


@pytest.mark.parametrize("answer", [b"", b'{"version": 1, "pi', b'{"version": 99}'])
async def test_what_cannot_be_understood_is_passed_over(runtime: Path, answer: bytes) -> None:
    folder = runtime / "spicebridge"
    folder.mkdir(0o700)
    (folder / "no-pid").touch()

    async def reply(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            if answer:
                await stream.send(answer)

    listener = await anyio.create_unix_listener(folder / "1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, reply)
        assert await running_at(Target(HERE)) == []
        tasks.cancel_scope.cancel()


async def test_a_bridge_tells_what_the_server_offers_until_its_session_is_lost(
    runtime: Path, short_tmp: Path
) -> None:
    page = StatusPage()
    port = ChannelInfo(ChannelType.PORT, 0)
    async with (
        offering(short_tmp, silent, kind=ChannelType.PORT) as address,
        open_session(Target(address)) as session,
    ):
        page.show(Target(address), [], session)
        async with published(page, runtime):
            (process,) = await running_at(Target(address))
            assert process.session
            assert await process.offered() == {port: PortInfo(port, PortInit("", True))}
            session.lost.set()
            assert await process.offered() is None
        assert await process.offered() is None  # it has ended


async def test_a_bridge_that_cannot_ask_its_server_says_so(
    runtime: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> Offered:
        raise ProtocolError("PORT_INIT", 0, "a name", "none")

    monkeypatch.setattr(status, "ask_session", fail)
    page = StatusPage()
    async with offering(short_tmp, silent) as address, open_session(Target(address)) as session:
        page.show(Target(address), [], session)
        async with published(page, runtime):
            (process,) = await running_at(Target(address))
            with pytest.raises(ConnectError, match=f"pid {os.getpid()}, .*: PORT_INIT at byte 0"):
                await process.offered()


async def test_a_bridge_whose_server_does_not_answer_says_so(
    runtime: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(*_: object) -> Offered:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(status, "ask_session", wait)
    monkeypatch.setattr(status, "ASKING", 0.01)
    page = StatusPage()
    async with offering(short_tmp, silent) as address, open_session(Target(address)) as session:
        page.show(Target(address), [], session)
        async with published(page, runtime):
            (process,) = await running_at(Target(address))
            with pytest.raises(ConnectError, match="the server did not answer within"):
                await process.offered()
