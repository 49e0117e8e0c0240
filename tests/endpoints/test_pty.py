"""``pty[=LINK]``: who opens the other side of a pseudo-terminal is the application."""

# ruff: noqa: ASYNC240 - the test is the application, and blocks as one

from __future__ import annotations

import os
import termios
from pathlib import Path

import anyio
import pytest

from spicebridge import EndpointError, PtyEndpoint
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
