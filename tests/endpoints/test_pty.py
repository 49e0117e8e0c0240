"""``pty[=LINK]``: who opens the other side of a pseudo-terminal is the application."""

# ruff: noqa: ASYNC240 - the test is the application, and blocks as one

from __future__ import annotations

import os
import stat
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from spicebridge import Application, EndpointError, PtyEndpoint
from tests.conftest import PATIENCE
from tests.endpoints.tools import open_fds, read_exactly, read_some, write


def sit_at(path: Path | str) -> int:
    return os.open(path, os.O_RDWR | os.O_NOCTTY)


async def test_the_link_is_created_and_removed(short_tmp: Path) -> None:
    link = short_tmp / "tty"
    async with PtyEndpoint(str(link)) as endpoint:
        assert (endpoint.waits, endpoint.repeats) == (True, True)
        target = os.readlink(link)
        assert target.startswith("/dev/pts/")
        assert target in endpoint.name
        assert link.is_char_device()
    assert not list(short_tmp.iterdir())


async def test_without_a_link_its_name_tells_where_it_is() -> None:
    async with PtyEndpoint() as endpoint:
        path = endpoint.name.partition("(")[2].rstrip(")")
        os.close(sit_at(path))


async def test_nobody_is_there_until_somebody_opens_it(short_tmp: Path) -> None:
    async with PtyEndpoint(str(short_tmp / "tty")) as endpoint:
        with anyio.move_on_after(0.3) as scope:
            await endpoint.accept()
        assert scope.cancelled_caught
        slave = sit_at(short_tmp / "tty")
        with anyio.fail_after(PATIENCE):
            application = await endpoint.accept()
        os.write(slave, b"up")
        assert await read_exactly(application, 2) == b"up"
        await write(application, b"down")
        assert os.read(slave, 100) == b"down"
        os.close(slave)
        assert await read_some(application) == b""
        assert application.stream.hung_up()
        await application.aclose()


async def test_one_after_another_may_sit_at_it(short_tmp: Path) -> None:
    async with PtyEndpoint(str(short_tmp / "tty")) as endpoint:
        for number in (b"1", b"2", b"3"):
            slave = sit_at(short_tmp / "tty")
            with anyio.fail_after(PATIENCE):
                application = await endpoint.accept()
            os.write(slave, number)
            assert await read_exactly(application, 1) == number
            os.close(slave)
            assert await read_some(application) == b""
            await application.aclose()


async def test_the_next_is_taken_only_once_the_last_was_let_go(short_tmp: Path) -> None:
    async with PtyEndpoint(str(short_tmp / "tty")) as endpoint:
        slave = sit_at(short_tmp / "tty")
        application = await endpoint.accept()
        with anyio.move_on_after(0.2) as scope:
            await endpoint.accept()
        assert scope.cancelled_caught
        await application.aclose()
        with anyio.fail_after(PATIENCE):
            await (await endpoint.accept()).aclose()  # it still sits there
        os.close(slave)


async def test_bytes_pass_as_they_are(short_tmp: Path) -> None:
    """Raw: no echo, no lines, no Ctrl-C, no CR for LF."""
    data = bytes(range(256))
    async with PtyEndpoint(str(short_tmp / "tty")) as endpoint:
        slave = sit_at(short_tmp / "tty")
        lflag = termios.tcgetattr(slave)[3]
        assert not lflag & (termios.ECHO | termios.ICANON | termios.ISIG)
        application = await endpoint.accept()
        os.write(slave, data)
        assert await read_exactly(application, 256) == data
        await write(application, data)
        got = b""
        while len(got) < 256:
            got += os.read(slave, 256)
        assert got == data
        await application.aclose()
        os.close(slave)


async def test_a_dangling_link_is_replaced(short_tmp: Path) -> None:
    link = short_tmp / "tty"
    link.symlink_to("/dev/pts/no-such-terminal")
    async with PtyEndpoint(str(link)):
        assert link.is_char_device()
    assert not link.is_symlink()


async def test_a_link_that_leads_to_our_own_terminal_was_left_behind(short_tmp: Path) -> None:
    """Its number is the lowest that is free: often that of the terminal that has gone."""
    link = short_tmp / "tty"
    async with PtyEndpoint() as endpoint:
        path = endpoint.name.partition("(")[2].rstrip(")")
    link.symlink_to(path)
    async with PtyEndpoint(str(link)):
        assert link.is_char_device()
    assert not link.is_symlink()


@pytest.mark.parametrize("whose", ["another", "elsewhere"])
async def test_another_dangling_link_is_left_alone(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Its disk may be back soon."""
    link = short_tmp / "tty"
    link.symlink_to("/dev/pts/no-such-terminal" if whose == "another" else "/mnt/no-such-disk")
    if whose == "another":
        monkeypatch.setattr(os, "geteuid", lambda: link.lstat().st_uid + 1)
    before = os.readlink(link)
    with pytest.raises(EndpointError, match="cannot create the link: File exists"):
        await PtyEndpoint(str(link)).open()
    assert os.readlink(link) == before


async def test_nobody_else_writes_to_the_terminal(short_tmp: Path) -> None:
    async with PtyEndpoint(str(short_tmp / "tty")):
        assert stat.S_IMODE((short_tmp / "tty").stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
async def test_what_stands_in_the_way_of_the_link_is_not_touched(
    short_tmp: Path, kind: str
) -> None:
    link = short_tmp / "tty"
    if kind == "file":
        link.write_text("precious")
    elif kind == "folder":
        link.mkdir()
    else:
        link.symlink_to("/dev/null")
    before = link.lstat()
    with pytest.raises(EndpointError, match="cannot create the link: File exists"):
        await PtyEndpoint(str(link)).open()
    assert link.lstat() == before


async def test_somebody_elses_link_at_our_path_is_not_removed(short_tmp: Path) -> None:
    link = short_tmp / "tty"
    async with PtyEndpoint(str(link)):
        link.unlink()
        link.symlink_to("/dev/null")
    assert os.readlink(link) == "/dev/null"


async def test_no_descriptor_is_left_open(short_tmp: Path) -> None:
    before = open_fds()
    with pytest.raises(EndpointError):
        await PtyEndpoint(str(short_tmp / "missing" / "tty")).open()
    assert open_fds() == before
    endpoint = PtyEndpoint(str(short_tmp / "tty"))
    await endpoint.open()
    slave = sit_at(short_tmp / "tty")
    application = await endpoint.accept()
    await application.aclose()
    os.close(slave)
    endpoint.close()
    endpoint.close()
    assert open_fds() == before


async def test_an_application_outlives_its_endpoint_until_it_is_let_go(short_tmp: Path) -> None:
    endpoint = PtyEndpoint(str(short_tmp / "tty"))
    await endpoint.open()
    slave = sit_at(short_tmp / "tty")
    application = await endpoint.accept()
    endpoint.close()
    os.write(slave, b"up")
    assert await read_exactly(application, 2) == b"up"
    await application.aclose()
    assert os.read(slave, 10) == b""
    os.close(slave)


# Breaks


@asynccontextmanager
async def at_terminal(on: int = 0, local: int = 0) -> AsyncIterator[tuple[Application, int]]:
    """An application and its terminal, with flags of c_iflag and c_lflag set."""
    async with PtyEndpoint() as endpoint:
        slave = sit_at(endpoint.name.partition("(")[2].rstrip(")"))
        try:
            settings = termios.tcgetattr(slave)
            settings[0] |= on
            settings[3] |= local
            termios.tcsetattr(slave, termios.TCSANOW, settings)
            application = await endpoint.accept()
            yield application, slave
            await application.aclose()
        finally:
            os.close(slave)


def read_slave(slave: int, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += os.read(slave, size - len(got))
    return got


async def send_break(application: Application) -> None:
    assert application.send_break is not None
    with anyio.fail_after(PATIENCE):
        await application.send_break()


BREAKS = {
    "raw": (0, 0, b"before\0after"),
    "ignored": (termios.IGNBRK, 0, b"beforeafter"),
    "ignored-first": (termios.IGNBRK | termios.BRKINT, 0, b"beforeafter"),
    "flushes": (termios.BRKINT, 0, b"after"),
    "does-not-flush": (termios.BRKINT, termios.NOFLSH, b"beforeafter"),
    "marked": (termios.PARMRK, 0, b"before\0after"),
}


@pytest.mark.parametrize(("on", "local", "reads"), BREAKS.values(), ids=[*BREAKS])
async def test_a_break_is_what_the_settings_of_the_terminal_make_of_it(
    on: int, local: int, reads: bytes
) -> None:
    async with at_terminal(on, local) as (application, slave):
        await write(application, b"before")
        await send_break(application)
        await write(application, b"after")
        assert read_slave(slave, len(reads)) == reads
        os.set_blocking(slave, False)
        with pytest.raises(BlockingIOError):
            os.read(slave, 1)


async def test_a_break_drops_what_the_terminal_has_not_sent_yet() -> None:
    async with at_terminal(termios.BRKINT) as (application, slave):
        await send_break(application)
        os.write(slave, b"behind it")
        assert await read_exactly(application, 9) == b"behind it"


AT_ITS_TERMINAL = """
import os, signal, sys, termios
terminal = os.open(sys.argv[1], os.O_RDWR)
signal.signal(signal.SIGINT, lambda *_: os.write(terminal, b"interrupted"))
settings = termios.tcgetattr(terminal)
settings[0] |= termios.BRKINT
termios.tcsetattr(terminal, termios.TCSANOW, settings)
os.write(terminal, b"ready")
while True:
    signal.pause()
"""


async def test_a_break_interrupts_the_program_at_the_terminal(short_tmp: Path) -> None:
    """Its session has it as its controlling terminal, as a shell's."""
    async with PtyEndpoint(str(short_tmp / "tty")) as endpoint:
        child = await anyio.open_process(
            [sys.executable, "-c", AT_ITS_TERMINAL, str(short_tmp / "tty")], start_new_session=True
        )
        async with child:
            try:
                with anyio.fail_after(PATIENCE):
                    application = await endpoint.accept()
                assert await read_exactly(application, 5) == b"ready"
                for _ in range(2):
                    await send_break(application)
                    assert await read_exactly(application, 11) == b"interrupted"
                await application.aclose()
            finally:
                child.kill()


async def test_a_break_waits_behind_what_the_terminal_has_not_taken() -> None:
    async with at_terminal() as (application, slave):
        view = memoryview(b"x" * 65536)
        sent = 0
        while count := application.stream.write_nowait([view]):
            sent += count
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_break, application)
            assert (
                await anyio.to_thread.run_sync(read_slave, slave, sent + 1) == b"x" * sent + b"\0"
            )


async def test_a_break_for_a_terminal_that_was_let_go_is_an_error() -> None:
    async with at_terminal() as (application, _):
        application.stream.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await send_break(application)
