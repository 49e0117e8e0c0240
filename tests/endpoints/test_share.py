"""``share=``: a folder over WebDAV, served by a process of ours."""

# ruff: noqa: ASYNC240 - what is shared is small

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from anyio.to_thread import run_sync

from spicebridge.endpoints import share
from spicebridge.endpoints.base import Application
from spicebridge.endpoints.share import ShareEndpoint
from spicebridge.errors import EndpointError
from tests.conftest import PATIENCE
from tests.endpoints.share_client import Client
from tests.endpoints.test_share_http import nobody
from tests.endpoints.tools import accepted, open_fds, sleep_until

T = TypeVar("T")


@pytest.fixture
def folder(short_tmp: Path) -> Path:
    path = short_tmp / "shared"
    path.mkdir()
    (path / "f").write_bytes(b"hello")
    return path


async def talk(application: Application, what: Callable[[Client], T]) -> T:
    """Runs a blocking client on a connection, in a thread."""
    sock = socket.socket(fileno=os.dup(application.stream.reader))

    def run() -> T:
        client = Client(sock)
        try:
            return what(client)
        finally:
            client.close()

    return await run_sync(run)


def gets(client: Client) -> bool:
    return client.ask("GET", "/f").body == b"hello"


def child_of(endpoint: ShareEndpoint) -> int:
    assert endpoint._process is not None
    return endpoint._process.pid


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


async def test_each_application_is_a_new_connection_to_the_server(folder: Path) -> None:
    endpoint = ShareEndpoint(str(folder))
    assert (endpoint.name, endpoint.waits, endpoint.repeats) == (f"share={folder}", False, True)
    async with accepted(endpoint) as first:
        second = await endpoint.accept()
        assert await talk(first, gets)
        assert await talk(second, gets)
        assert (await talk(second, lambda it: it.ask("PUT", "/g", b"2"))).status == 201
        await second.aclose()
        assert await talk(first, lambda it: it.ask("GET", "/g").body) == b"2"
        assert first.name == f"share={folder}"


async def test_read_only(folder: Path) -> None:
    async with accepted(ShareEndpoint(str(folder), readonly=True)) as application:
        assert await talk(application, gets)
        assert (await talk(application, lambda it: it.ask("PUT", "/g", b"2"))).status == 403


async def test_the_folder_may_be_a_symbolic_link(folder: Path) -> None:
    link = folder.with_name("link")
    link.symlink_to("shared")
    async with accepted(ShareEndpoint(str(link))) as application:
        link.unlink()  # it was resolved when it was opened
        assert await talk(application, gets)


async def test_a_relative_folder_is_below_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    async with accepted(ShareEndpoint("shared")) as application:
        assert await talk(application, gets)


async def test_no_module_is_taken_from_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for name in ("wsgidav", "cheroot", "spicebridge", "socket"):
        (folder / f"{name}.py").write_text("raise SystemExit(3)")
    async with accepted(ShareEndpoint(".")) as application:
        assert await talk(application, gets)


async def test_nothing_is_left_open_or_running(folder: Path) -> None:
    async with ShareEndpoint(str(folder)) as warm:  # the loop opens what it needs for children
        await (await warm.accept()).aclose()
    for _ in range(2):
        before = open_fds()
        async with ShareEndpoint(str(folder)) as endpoint:
            pid = child_of(endpoint)
            applications = [await endpoint.accept() for _ in range(10)]
            for application in applications:
                await application.aclose()
        assert gone(pid)
        assert open_fds() == before
    assert sorted(os.listdir(folder)) == ["f"]


async def test_an_endpoint_that_is_not_open_says_so(folder: Path) -> None:
    endpoint = ShareEndpoint(str(folder))
    with pytest.raises(EndpointError, match="is not open"):
        await endpoint.accept()
    async with endpoint:
        pass
    with pytest.raises(EndpointError, match="is not open"):
        await endpoint.accept()


async def test_the_server_keeps_nothing_of_ours(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPICEBRIDGE_PASSWORD", "secret")
    async with ShareEndpoint(str(folder)) as endpoint:
        pid = child_of(endpoint)
        assert b"SPICEBRIDGE_PASSWORD" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert os.getsid(pid) == pid  # Ctrl-C is not for it
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        fds = {os.readlink(fd).partition(":")[0] for fd in Path(f"/proc/{pid}/fd").iterdir()}
        assert len([fd for fd in fds if fd == "socket"]) == 1


async def test_a_connection_that_is_let_go_leaves_nothing_in_the_server(folder: Path) -> None:
    async with ShareEndpoint(str(folder)) as endpoint:
        fds = Path(f"/proc/{child_of(endpoint)}/fd")
        before = len(os.listdir(fds))
        for _ in range(5):
            application = await endpoint.accept()
            assert await talk(application, gets)
            await application.aclose()
        await sleep_until(lambda: len(os.listdir(fds)) == before, "its descriptors are closed")


@pytest.fixture
def many_fds() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_fds")
async def test_a_thousand_connections_at_once(folder: Path) -> None:
    applications: list[Application] = []

    async def connect() -> None:
        applications.append(await endpoint.accept())

    async with ShareEndpoint(str(folder)) as endpoint:
        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(connect)
        request = b"GET /f HTTP/1.1\r\nHost: h\r\n\r\n"
        for application in applications:
            await application.stream.write_all([memoryview(request)])
        buffer = bytearray(4096)
        for application in applications:
            with anyio.fail_after(PATIENCE):
                count = await application.stream.read_into(memoryview(buffer))
            assert buffer[:count].endswith(b"hello")
            await application.aclose()


async def test_accepting_may_be_cancelled(folder: Path) -> None:
    async with ShareEndpoint(str(folder)) as endpoint:
        before = open_fds()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await endpoint.accept()
        assert open_fds() == before
        application = await endpoint.accept()
        assert await talk(application, gets)
        await application.aclose()


async def test_a_server_that_has_died_is_started_again(folder: Path) -> None:
    async with ShareEndpoint(str(folder)) as endpoint:
        first = await endpoint.accept()
        pid = child_of(endpoint)
        os.kill(pid, signal.SIGKILL)
        await sleep_until(first.stream.peer_ended, "its connections have ended")
        second = await endpoint.accept()
        assert child_of(endpoint) != pid
        assert await talk(second, gets)
        await first.aclose()
        await second.aclose()


async def test_one_that_cannot_be_started_again_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ShareEndpoint(str(folder)) as endpoint:
        first = await endpoint.accept()
        os.kill(child_of(endpoint), signal.SIGKILL)
        await sleep_until(first.stream.peer_ended, "its connections have ended")
        await first.aclose()
        monkeypatch.setattr(share, "_SERVER", "timeit")
        before = open_fds()
        with pytest.raises(EndpointError, match=r"its server does not start: it ended at once$"):
            await endpoint.accept()
        assert open_fds() <= before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_us_however_we_end(folder: Path, number: signal.Signals) -> None:
    code = (
        "import anyio\n"
        "from spicebridge.endpoints.share import ShareEndpoint\n"
        "async def main():\n"
        f"    async with ShareEndpoint({str(folder)!r}) as endpoint:\n"
        "        application = await endpoint.accept()\n"
        "        print(endpoint._process.pid, flush=True)\n"
        "        await anyio.sleep_forever()\n"
        "anyio.run(main)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        watch = os.pidfd_open(pid)
        parent.send_signal(number)
    try:
        assert select.select([watch], [], [], PATIENCE)[0]
    finally:
        os.close(watch)


async def test_a_server_that_does_not_heed_its_end_is_terminated(
    folder: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server(short_tmp, monkeypatch, 'control.send(b"ready")\ntime.sleep(1000)')
    monkeypatch.setattr(share, "EXIT_TIMEOUT", 0.1)
    async with ShareEndpoint(str(folder)) as endpoint:
        pid = child_of(endpoint)
    assert gone(pid)


async def test_a_server_that_does_not_start_is_told_and_ended(
    folder: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server(short_tmp, monkeypatch, "time.sleep(1000)")
    monkeypatch.setattr(share, "START_TIMEOUT", 0.1)
    monkeypatch.setattr(share, "EXIT_TIMEOUT", 0.1)
    before = open_fds()
    with pytest.raises(EndpointError, match=r"its server does not start$"):
        await ShareEndpoint(str(folder)).open()
    assert len(open_fds() - before) <= 2  # what the event loop keeps for its children


async def test_why_it_does_not_start_is_told_in_one_line(
    folder: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server(short_tmp, monkeypatch, 'control.send(b"no module xyz\\nmore")')
    with pytest.raises(EndpointError, match=r"its server does not start: no module xyz$"):
        await ShareEndpoint(str(folder)).open()


def server(short_tmp: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Puts another program in the place of the server."""
    head = "import socket, sys, time\ncontrol = socket.socket(fileno=int(sys.argv[1]))\n"
    (short_tmp / "other_server.py").write_text(head + code)
    monkeypatch.setenv("PYTHONPATH", str(short_tmp))
    monkeypatch.setattr(share, "_SERVER", "other_server")


async def test_what_cannot_be_shared_is_told_early(folder: Path) -> None:
    for path, says in (
        ("", "share= names no folder"),
        (f"{folder}/none", "No such file or directory"),
        (f"{folder}/f", "it is no folder"),
        (f"{folder}/f/x", "Not a directory"),
        ("a\0b", "embedded null"),
    ):
        with pytest.raises(EndpointError, match=says):
            await ShareEndpoint(path).open()


async def test_a_folder_that_may_not_be_read_or_written_is_told_early(folder: Path) -> None:
    folder.parent.chmod(0o755)
    try:
        for mode, readonly, says in (
            (0o000, True, "you may not read it"),
            (0o444, True, "you may not read it"),
            (0o555, False, "you may not write to it; add readonly=on"),
        ):
            folder.chmod(mode)
            with nobody(), pytest.raises(EndpointError, match=says):
                await ShareEndpoint(str(folder), readonly=readonly).open()
    finally:
        folder.chmod(0o755)


async def test_the_libraries_may_be_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "find_spec", lambda name: None)
    with pytest.raises(EndpointError) as caught:
        await ShareEndpoint(str(folder)).open()
    assert caught.value.hint == "pip install 'spicebridge[webdav]'"
    assert "wsgidav and cheroot" in caught.value.problem


def test_the_libraries_are_not_loaded_by_us() -> None:
    code = "import sys, spicebridge.endpoints.share; print([*sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert b"wsgidav" not in loaded
    assert b"cheroot" not in loaded


async def test_large_files_take_no_memory(folder: Path) -> None:
    size = 256 * 1024 * 1024
    (folder / "big").touch()
    os.truncate(folder / "big", size)

    def move(client: Client) -> None:
        client.request("GET", "/big")
        answer = client.getresponse()
        got = 0
        while data := answer.read(1024 * 1024):
            got += len(data)
        assert got == size
        zeros = bytes(1024 * 1024)
        assert client.ask("PUT", "/up", iter([zeros] * 256), Content_Length=str(size)).status == 201
        assert client.ask("PUT", "/up", iter([zeros] * 256), chunked=True).status == 204
        head = f"PUT /up HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n"
        client.sock.sendall(head.encode())  # one chunk
        for _ in range(256):
            client.sock.sendall(zeros)
        assert client.raw(b"\r\n0\r\n\r\n").status == 204

    endpoint = ShareEndpoint(str(folder))
    async with accepted(endpoint) as application:
        await talk(application, move)
        status = Path(f"/proc/{child_of(endpoint)}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0])
        assert peak < 100 * 1024  # kB
    assert (folder / "up").stat().st_size == size
