"""``pipe=P``: the FIFOs P.in and P.out."""

# ruff: noqa: ASYNC230, ASYNC240 - the test is the application, and blocks as one

from __future__ import annotations

import os
import stat
from pathlib import Path

import anyio
import pytest

from spicebridge import Application, EndpointError, PipeEndpoint
from spicebridge.transport.entry import Entry
from tests.endpoints.tools import accepted, open_fds, read_exactly, write


def fifos(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_fifo()}


async def test_both_fifos_are_created_and_removed(short_tmp: Path) -> None:
    async with PipeEndpoint(str(short_tmp / "p")) as endpoint:
        assert (endpoint.waits, endpoint.repeats) == (True, True)
        assert fifos(short_tmp) == {"p.in", "p.out"}
    assert fifos(short_tmp) == set()


async def test_fifos_that_are_there_are_used_and_stay(short_tmp: Path) -> None:
    for name in ("p.in", "p.out"):
        os.mkfifo(short_tmp / name, 0o640)
    before = (short_tmp / "p.in").stat().st_ino
    async with accepted(PipeEndpoint(str(short_tmp / "p"), perm=0o600)) as application:
        await exchange(short_tmp, application)
    status = (short_tmp / "p.in").stat()
    assert fifos(short_tmp) == {"p.in", "p.out"}
    assert (status.st_ino, stat.S_IMODE(status.st_mode) & 0o600) == (before, 0o600)


async def exchange(folder: Path, application: Application) -> None:
    """Somebody writes P.in and reads P.out, with blocking opens as a shell does."""
    with open(folder / "p.in", "wb", buffering=0) as out:
        out.write(b"up")
    assert await read_exactly(application, 2) == b"up"
    with open(folder / "p.out", "rb", buffering=0) as reader:
        await write(application, b"down")
        assert reader.read(4) == b"down"


@pytest.mark.parametrize("there", ["p.in", "p.out"])
async def test_the_fifo_that_is_missing_is_told(short_tmp: Path, there: str) -> None:
    os.mkfifo(short_tmp / there)
    (missing,) = {"p.in", "p.out"} - {there}
    with pytest.raises(EndpointError, match=rf"{missing} is missing; .* mkfifo .*{missing}"):
        await PipeEndpoint(str(short_tmp / "p")).open()
    assert fifos(short_tmp) == {there}


@pytest.mark.parametrize("name", ["p.in", "p.out"])
async def test_a_file_in_the_place_of_a_fifo_is_not_touched(short_tmp: Path, name: str) -> None:
    (short_tmp / name).write_text("precious")
    with pytest.raises(EndpointError, match=rf"{name} exists and is no FIFO"):
        await PipeEndpoint(str(short_tmp / "p")).open()
    assert (short_tmp / name).read_text() == "precious"
    assert len(list(short_tmp.iterdir())) == 1


@pytest.mark.parametrize("perm", [0o600, 0o622, 0o666])
@pytest.mark.parametrize("umask", [0o000, 0o077])
async def test_the_mode_of_a_fifo_is_what_was_asked_for_under_any_umask(
    short_tmp: Path, perm: int, umask: int
) -> None:
    before = os.umask(umask)
    try:
        async with PipeEndpoint(str(short_tmp / "p"), perm=perm):
            modes = {stat.S_IMODE(path.stat().st_mode) for path in short_tmp.iterdir()}
            assert modes == {perm}
    finally:
        os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o022])
@pytest.mark.parametrize("perm", [0o600, 0o666])
async def test_a_fifo_is_never_wider_open_than_asked_for(
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
        async with PipeEndpoint(str(short_tmp / "p"), perm=perm):
            assert modes == [perm & ~umask] * 2
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["p.in", "p.out"])
@pytest.mark.parametrize("target", ["fifo", "nowhere"])
async def test_a_symbolic_link_is_not_followed(short_tmp: Path, name: str, target: str) -> None:
    for each in ("p.in", "p.out", "fifo"):
        os.mkfifo(short_tmp / each)
    (short_tmp / name).unlink()
    (short_tmp / name).symlink_to(short_tmp / target)
    with pytest.raises(EndpointError, match=f"{name} is a symbolic link, which is not followed"):
        await PipeEndpoint(str(short_tmp / "p")).open()
    assert (short_tmp / name).is_symlink()


async def test_fifos_of_another_user_are_not_used(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("p.in", "p.out"):
        os.mkfifo(short_tmp / name)
        os.chown(short_tmp / name, os.getuid() or 1, -1)
    monkeypatch.setattr(os, "geteuid", lambda: (os.getuid() or 1) + 1)
    with pytest.raises(EndpointError, match=r"p\.in is a FIFO of another user"):
        await PipeEndpoint(str(short_tmp / "p")).open()
    assert fifos(short_tmp) == {"p.in", "p.out"}


@pytest.mark.parametrize(
    ("kind", "says"),
    [("link", r"cannot open .*p\.out: Too many levels"), ("file", r"p\.out exists and is no FIFO")],
)
async def test_what_came_into_the_place_of_a_fifo_is_neither_used_nor_removed(
    short_tmp: Path, kind: str, says: str
) -> None:
    async with PipeEndpoint(str(short_tmp / "p")) as endpoint:
        before = open_fds()
        (short_tmp / "p.out").unlink()
        if kind == "link":
            (short_tmp / "p.out").symlink_to(short_tmp / "p.in")
        else:
            (short_tmp / "p.out").write_text("precious")
        there = (short_tmp / "p.out").lstat()
        with pytest.raises(EndpointError, match=says):
            await endpoint.accept()
        assert open_fds() == before
    assert [path.name for path in short_tmp.iterdir()] == ["p.out"]
    assert (short_tmp / "p.out").lstat() == there


async def test_fifos_that_somebody_has_made_anew_stay(short_tmp: Path) -> None:
    async with PipeEndpoint(str(short_tmp / "p")) as endpoint:
        for name in ("p.in", "p.out"):
            (short_tmp / name).unlink()
            os.mkfifo(short_tmp / name, 0o600)
        application = await endpoint.accept()
        await exchange(short_tmp, application)
        await application.aclose()
    assert fifos(short_tmp) == {"p.in", "p.out"}


async def test_a_fifo_that_cannot_be_created_leaves_no_other_behind(short_tmp: Path) -> None:
    name = "x" * 252  # with .in it is as long as a name may be, with .out too long
    with pytest.raises(EndpointError, match="File name too long"):
        await PipeEndpoint(str(short_tmp / name)).open()
    assert not list(short_tmp.iterdir())


async def test_somebody_who_has_removed_the_fifos_is_no_trouble(short_tmp: Path) -> None:
    async with PipeEndpoint(str(short_tmp / "p")):
        (short_tmp / "p.in").unlink()
    assert not list(short_tmp.iterdir())


async def test_writers_may_come_and_go(short_tmp: Path) -> None:
    """No end of file is seen between two of them, as with QEMU's -chardev pipe."""
    async with accepted(PipeEndpoint(str(short_tmp / "p"))) as application:
        for _ in range(3):
            await exchange(short_tmp, application)
        buffer = memoryview(bytearray(10))
        assert application.stream.read_nowait(buffer) is None


async def test_the_next_application_is_there_once_the_last_was_let_go(short_tmp: Path) -> None:
    async with PipeEndpoint(str(short_tmp / "p")) as endpoint:
        first = await endpoint.accept()
        with anyio.move_on_after(0.01) as scope:
            await endpoint.accept()
        assert scope.cancelled_caught
        await first.aclose()
        second = await endpoint.accept()
        await exchange(short_tmp, second)
        await second.aclose()


async def test_a_reader_sees_end_of_file_when_the_application_is_let_go(short_tmp: Path) -> None:
    async with PipeEndpoint(str(short_tmp / "p")) as endpoint:
        application = await endpoint.accept()
        with open(short_tmp / "p.out", "rb", buffering=0) as reader:
            await write(application, b"last words")
            await application.aclose()
            assert reader.read() == b"last words"


async def test_a_fifo_that_vanished_before_it_was_opened(short_tmp: Path) -> None:
    async with PipeEndpoint(str(short_tmp / "p")) as endpoint:
        before = open_fds()
        (short_tmp / "p.out").unlink()
        with pytest.raises(EndpointError, match=r"cannot open .*p\.out"):
            await endpoint.accept()
        assert open_fds() == before


async def test_no_descriptor_is_left_open(short_tmp: Path) -> None:
    before = open_fds()
    endpoint = PipeEndpoint(str(short_tmp / "p"))
    await endpoint.open()
    unused = open_fds()
    application = await endpoint.accept()
    assert len(open_fds() - unused) == 2
    await application.aclose()
    assert open_fds() == unused
    endpoint.close()
    assert open_fds() == before
