"""Listening: sockets replaced, refused or left alone; nothing left behind that is ours."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import sys
from pathlib import Path

import anyio
import pytest

from spicebridge.errors import EndpointError
from spicebridge.transport import entry
from spicebridge.transport.address import TcpAddress, UnixAddress
from spicebridge.transport.connect import connect
from spicebridge.transport.entry import Entry, folder_locked
from spicebridge.transport.listen import _MAX_UNIX_PATH, listen
from tests.transport.pairs import read_exactly, settled
from tests.transport.test_connect import assert_kept_alive


def at(path: Path) -> UnixAddress:
    return UnixAddress(str(path))


def stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_who_connects_is_accepted_and_named(short_tmp: Path, kind: str) -> None:
    wanted = at(short_tmp / "s") if kind == "unix" else TcpAddress("127.0.0.1", 0)
    with await listen(wanted) as listener:
        client = await connect(listener.address)
        server, name = await listener.accept()
        await client.write_all([memoryview(b"hello")])
        assert await read_exactly(server, 5) == b"hello"
        client.close()
        server.close()
    expected = rf"pid {os.getpid()} \(.+\)" if kind == "unix" else r"127\.0\.0\.1:\d+"
    assert re.fullmatch(expected, name)


async def test_accepting_waits_for_who_comes() -> None:
    accepted = []
    with await listen(TcpAddress("127.0.0.1", 0)) as listener:

        async def accept() -> None:
            stream, _ = await listener.accept()
            accepted.append(stream)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            await settled()
            assert not accepted
            (await connect(listener.address)).close()
    accepted[0].close()


async def test_closing_wakes_who_accepts() -> None:
    listener = await listen(TcpAddress("127.0.0.1", 0))

    async def accept() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await listener.accept()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(accept)
        await settled()
        listener.close()
    listener.close()


async def test_out_of_descriptors_the_next_client_waits(
    monkeypatch: pytest.MonkeyPatch, short_tmp: Path
) -> None:
    with await listen(at(short_tmp / "s")) as listener:
        client = await connect(listener.address)
        errors = iter([OSError(24, "Too many open files"), ConnectionAbortedError()])
        real = listener._socket

        class Exhausted:
            def fileno(self) -> int:
                return real.fileno()

            def accept(self) -> tuple[socket.socket, object]:
                for error in errors:
                    raise error
                return real.accept()

            def close(self) -> None:
                real.close()

        monkeypatch.setattr(listener, "_socket", Exhausted())
        stream, _ = await listener.accept()
        stream.close()
        client.close()


async def test_another_failure_of_accept_is_an_error(short_tmp: Path) -> None:
    with await listen(at(short_tmp / "s")) as listener:
        listener._socket.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await listener.accept()


# TCP


async def test_a_client_that_goes_without_a_word_is_found_out() -> None:
    with await listen(TcpAddress("127.0.0.1", 0)) as listener:
        client = await connect(listener.address)
        server, _ = await listener.accept()
        assert server.socket is not None
        assert_kept_alive(server.socket)
        server.close()
        client.close()


async def test_port_0_takes_a_free_one_and_tells_which() -> None:
    with await listen(TcpAddress("127.0.0.1", 0)) as listener:
        assert isinstance(listener.address, TcpAddress)
        assert listener.address.host == "127.0.0.1"
        assert listener.address.port > 0


async def test_a_port_in_use_is_refused() -> None:
    with await listen(TcpAddress("127.0.0.1", 0)) as listener:
        with pytest.raises(EndpointError) as caught:
            await listen(listener.address)
        assert (
            caught.value.problem == f"cannot listen on {listener.address}: Address already in use"
        )
        assert caught.value.hint == "choose another port"


async def test_a_port_can_be_taken_again_at_once() -> None:
    with await listen(TcpAddress("127.0.0.1", 0)) as listener:
        client = await connect(listener.address)
        server, _ = await listener.accept()
        server.close()  # first: its side stays in TIME_WAIT
        client.close()
    (await listen(listener.address)).close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "ä..invalid"])
async def test_a_host_that_does_not_resolve_is_refused(host: str) -> None:
    with pytest.raises(EndpointError, match=f"cannot listen on {host}:1: ") as caught:
        await listen(TcpAddress(host, 1))
    assert caught.value.hint == "check the host name"


# Unix sockets


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("perm", [0o600, 0o660, 0o666])
async def test_a_socket_has_exactly_the_mode_asked_for(
    short_tmp: Path, perm: int, umask: int
) -> None:
    before = os.umask(umask)
    try:
        with await listen(at(short_tmp / "s"), perm):
            assert stat.S_IMODE(os.lstat(short_tmp / "s").st_mode) == perm
    finally:
        os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o022])
@pytest.mark.parametrize("perm", [0o600, 0o666])
async def test_a_socket_is_never_wider_open_than_asked_for(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, perm: int, umask: int
) -> None:
    modes = []
    made = Entry.made

    def look(path: str, kind: int, perm: int) -> Entry:
        modes.append(stat.S_IMODE(os.lstat(path).st_mode))
        return made(path, kind, perm)

    monkeypatch.setattr(Entry, "made", look)
    before = os.umask(umask)
    try:
        (await listen(at(short_tmp / "s"), perm)).close()
    finally:
        os.umask(before)
    assert modes == [perm & ~umask]


async def test_a_stale_socket_is_replaced(short_tmp: Path) -> None:
    stale_socket(short_tmp / "s")
    with await listen(at(short_tmp / "s")) as listener:
        (await connect(listener.address)).close()
    assert not (short_tmp / "s").exists()


async def test_a_socket_where_something_answers_is_left_alone(short_tmp: Path) -> None:
    with await listen(at(short_tmp / "s")) as listener:
        with pytest.raises(EndpointError) as caught:
            await listen(at(short_tmp / "s"))
        assert caught.value.problem == (
            f"cannot listen on unix:{short_tmp}/s: another program answers there"
        )
        (await connect(listener.address)).close()
    assert not (short_tmp / "s").exists()


async def test_a_socket_that_is_too_busy_to_answer_is_left_alone(short_tmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(short_tmp / "s"))
        busy.listen(0)
        waiting.connect(str(short_tmp / "s"))
        with pytest.raises(EndpointError, match="another program answers there"):
            await listen(at(short_tmp / "s"))


async def test_a_peer_that_has_gone_is_named_by_its_number(short_tmp: Path) -> None:
    with await listen(at(short_tmp / "s")) as listener:
        code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        child = await anyio.open_process([sys.executable, "-c", code, str(short_tmp / "s")])
        await child.wait()
        await child.aclose()
        stream, name = await listener.accept()
        assert name == f"pid {child.pid}"
        stream.close()


@pytest.mark.parametrize("make", ["file", "folder", "fifo", "symlink"])
async def test_what_is_no_socket_is_never_touched(short_tmp: Path, make: str) -> None:
    path = short_tmp / "s"
    if make == "file":
        path.write_text("precious")
    elif make == "folder":
        path.mkdir()
    elif make == "fifo":
        os.mkfifo(path)
    else:
        stale_socket(short_tmp / "other")
        path.symlink_to(short_tmp / "other")
    before = os.lstat(path)
    with pytest.raises(EndpointError, match="it exists and is no socket"):
        await listen(at(path))
    after = os.lstat(path)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_the_longest_path_is_taken_and_one_more_byte_is_refused(short_tmp: Path) -> None:
    room = _MAX_UNIX_PATH - len(str(short_tmp)) - 1
    with await listen(at(short_tmp / ("x" * room))) as listener:
        (await connect(listener.address)).close()
    with pytest.raises(EndpointError, match="the path has 108 bytes") as caught:
        await listen(at(short_tmp / ("x" * (room + 1))))
    assert "107 at most" in caught.value.hint
    with pytest.raises(EndpointError, match="the path has 108 bytes"):
        await listen(at(short_tmp / ("x" * (room - 1) + "ä")))


async def test_a_stale_socket_of_another_user_is_left_alone(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale_socket(short_tmp / "s")
    before = os.lstat(short_tmp / "s")
    monkeypatch.setattr(os, "geteuid", lambda: before.st_uid + 1)
    with pytest.raises(EndpointError) as caught:
        await listen(at(short_tmp / "s"))
    assert caught.value.problem == (
        f"cannot listen on unix:{short_tmp}/s: it is a socket of another user"
    )
    assert os.lstat(short_tmp / "s") == before


async def test_a_socket_that_came_while_we_looked_for_an_answer_is_left_alone(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what is there by then is removed, but what did not answer."""
    path = short_tmp / "s"
    stale_socket(path)
    remove = Entry.remove

    def replaced(found: Entry) -> None:
        path.unlink()
        stale_socket(path)
        remove(found)

    monkeypatch.setattr(Entry, "remove", replaced)
    with pytest.raises(EndpointError, match="Address already in use"):
        await listen(at(path))
    assert path.is_socket()


async def test_something_else_in_the_place_of_what_we_bound_is_left_alone(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = short_tmp / "s"
    made = Entry.made

    def replaced(name: str, kind: int, perm: int) -> Entry:
        path.unlink()
        path.write_text("precious")
        path.chmod(0o600)
        return made(name, kind, perm)

    monkeypatch.setattr(Entry, "made", replaced)
    with pytest.raises(EndpointError, match="File exists"):
        await listen(at(path), 0o666)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("precious", 0o600)


async def test_a_socket_that_cannot_have_its_mode_is_not_left_behind(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, mode: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chmod", refuse)
    before = os.umask(0o022)
    try:
        with pytest.raises(EndpointError, match="Operation not permitted"):
            await listen(at(short_tmp / "s"), 0o666)
    finally:
        os.umask(before)
    assert not os.listdir(short_tmp)


async def test_a_folder_that_was_removed_with_the_socket_is_no_trouble(short_tmp: Path) -> None:
    folder = short_tmp / "gone"
    folder.mkdir()
    with await listen(at(folder / "s")):
        (folder / "s").unlink()
        folder.rmdir()
    assert not os.listdir(short_tmp)


async def test_one_waits_for_another_that_is_about_to_listen_in_the_folder(short_tmp: Path) -> None:
    """Bound and not listening yet, its socket looks like one that was left behind."""
    path = short_tmp / "s"
    refused = []

    async def second() -> None:
        with pytest.raises(EndpointError, match="another program answers there"):
            await listen(at(path))
        refused.append(path.is_socket())

    with socket.socket(socket.AF_UNIX) as first:
        async with anyio.create_task_group() as tasks, folder_locked(str(path)):
            first.bind(str(path))
            tasks.start_soon(second)
            await settled()
            assert not refused
            first.listen()
    assert refused == [True]


async def test_a_stranger_who_keeps_a_folder_locked_stops_nobody(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "_LOCK_TIMEOUT", 0.01)
    async with folder_locked(f"{short_tmp}/x"):
        (await listen(at(short_tmp / "s"))).close()


@pytest.mark.parametrize("folder", ["missing", "file"])
async def test_a_missing_folder_says_so(short_tmp: Path, folder: str) -> None:
    (short_tmp / "file").touch()
    with pytest.raises(EndpointError, match=f"cannot listen on unix:{short_tmp}/{folder}/s: ") as e:
        await listen(at(short_tmp / folder / "s"))
    assert e.value.hint == "create its folder first"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_that_is_not_ours_says_so(short_tmp: Path) -> None:
    os.chmod(short_tmp, 0o500)
    with pytest.raises(EndpointError) as caught:
        await listen(at(short_tmp / "s"))
    os.chmod(short_tmp, 0o700)
    assert caught.value.hint == "choose a folder that you may write to"


async def test_a_closed_listener_removes_its_file_once(short_tmp: Path) -> None:
    listener = await listen(at(short_tmp / "s"))
    listener.close()
    assert not (short_tmp / "s").exists()
    (short_tmp / "s").touch()
    listener.close()
    assert (short_tmp / "s").exists()


@pytest.mark.parametrize("replaced_by", ["file", "socket", "nothing"])
async def test_a_file_that_is_no_longer_ours_stays(short_tmp: Path, replaced_by: str) -> None:
    path = short_tmp / "s"
    listener = await listen(at(path))
    path.rename(short_tmp / "moved")  # so that the inode is not used again
    if replaced_by == "file":
        path.touch()
    elif replaced_by == "socket":
        stale_socket(path)
    listener.close()
    assert path.exists() == (replaced_by != "nothing")
    assert (short_tmp / "moved").exists()
