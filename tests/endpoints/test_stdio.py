"""``stdio``: descriptors that are shared with the shell and whoever else it has started."""

from __future__ import annotations

import os
import pty
import socket
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from spicebridge import EndpointError, StdioEndpoint
from spicebridge.endpoints import stdio
from tests.endpoints.tools import accepted, open_fds, read_exactly, read_some, write

Standard = Callable[[int, int], None]


@pytest.fixture
def standard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standard]:
    """Makes two descriptors stand for stdin and stdout; they are closed at the end."""
    given: list[int] = []

    def stand_for(stdin: int, stdout: int) -> None:
        monkeypatch.setattr(stdio, "_STDIN", stdin)
        monkeypatch.setattr(stdio, "_STDOUT", stdout)
        given.extend({stdin, stdout})

    yield stand_for
    for fd in given:
        os.close(fd)


async def test_pipes_as_in_a_pipeline(standard: Standard) -> None:
    stdin, writer = os.pipe()
    reader, stdout = os.pipe()
    standard(stdin, stdout)
    endpoint = StdioEndpoint(linger=7)
    assert (endpoint.waits, endpoint.repeats) == (False, False)
    async with accepted(endpoint) as application:
        assert (application.linger, application.ends_with_output) == (7, True)
        os.write(writer, b"up")
        assert await read_exactly(application, 2) == b"up"
        await write(application, b"down")
        assert os.read(reader, 4) == b"down"
        os.close(writer)
        assert await read_some(application) == b""
        assert not application.stream.hung_up()
        os.close(reader)
        assert application.stream.hung_up()


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal", "one-socket"])
async def test_o_nonblock_is_never_left_on_what_others_share(standard: Standard, kind: str) -> None:
    match kind:
        case "pipe":
            (stdin, other_in), (other_out, stdout) = os.pipe(), os.pipe()
            others = [other_in, other_out]
        case "terminal":
            master, stdin = pty.openpty()
            stdout, others = os.dup(stdin), [master]
        case _:
            ours, theirs = socket.socketpair()
            stdin, others = theirs.detach(), [ours.detach()]
            stdout = stdin if kind == "one-socket" else os.dup(stdin)
    standard(stdin, stdout)
    try:
        async with accepted(StdioEndpoint()) as application:
            if kind in {"pipe", "terminal"}:  # not even while it runs
                assert os.get_blocking(stdin)
                assert os.get_blocking(stdout)
            with anyio.move_on_after(0.01) as scope:
                await read_some(application)
            assert scope.cancelled_caught
        assert os.get_blocking(stdin)
        assert os.get_blocking(stdout)
    finally:
        for fd in others:
            os.close(fd)


async def test_a_socket_that_was_non_blocking_stays_so(standard: Standard) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.setblocking(False)
        fd = theirs.detach()
        standard(fd, fd)
        async with accepted(StdioEndpoint()):
            pass
        assert not os.get_blocking(fd)


async def test_regular_files(standard: Standard, short_tmp: Path) -> None:
    (short_tmp / "in").write_bytes(b"all of it")
    standard(
        os.open(short_tmp / "in", os.O_RDONLY),
        os.open(short_tmp / "out", os.O_WRONLY | os.O_CREAT),
    )
    async with accepted(StdioEndpoint()) as application:
        assert await read_exactly(application, 9) == b"all of it"
        assert await read_some(application) == b""
        await write(application, b"down")
        assert not application.stream.hung_up()
    assert (short_tmp / "out").read_bytes() == b"down"


async def test_a_file_goes_on_where_the_shell_had_it(standard: Standard, short_tmp: Path) -> None:
    """As in ``(echo head; spicebridge …; echo tail) > out < in``."""
    (short_tmp / "in").write_bytes(b"read already, not yet")
    stdin = os.open(short_tmp / "in", os.O_RDONLY)
    stdout = os.open(short_tmp / "out", os.O_WRONLY | os.O_CREAT)
    os.read(stdin, 14)
    os.write(stdout, b"head ")
    standard(stdin, stdout)
    async with accepted(StdioEndpoint()) as application:
        assert await read_some(application) == b"not yet"
        await write(application, b"down ")
    os.write(stdout, b"tail")
    assert (short_tmp / "out").read_bytes() == b"head down tail"


async def test_dev_null(standard: Standard) -> None:
    standard(os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY))
    async with accepted(StdioEndpoint()) as application:
        assert await read_some(application) == b""
        await write(application, b"x" * 100_000)


async def test_a_terminal_is_quiet_meanwhile_and_given_back_as_it_was(standard: Standard) -> None:
    master, slave = pty.openpty()
    standard(slave, os.dup(slave))
    try:
        before = termios.tcgetattr(slave)
        assert before[3] & termios.ECHO
        async with accepted(StdioEndpoint()) as application:
            _, oflag, _, lflag, *_ = termios.tcgetattr(slave)
            assert not lflag & (termios.ECHO | termios.ICANON)
            assert lflag & termios.ISIG  # Ctrl-C still ends us
            assert oflag & termios.OPOST  # and the log does not become a staircase
            os.write(master, b"k")  # a key, no line
            assert await read_some(application) == b"k"
            await write(application, b"shown")
            assert os.read(master, 100) == b"shown"
        after = termios.tcgetattr(slave)
        after[3] &= ~termios.PENDIN
        assert after == before
    finally:
        os.close(master)


async def test_a_terminal_that_has_gone_is_the_end_of_stdin(standard: Standard) -> None:
    master, slave = pty.openpty()
    standard(slave, os.dup(slave))
    async with StdioEndpoint() as endpoint:
        application = await endpoint.accept()
        os.close(master)
        assert await read_some(application) == b""
        await application.aclose()


@pytest.mark.parametrize("which", ["stdin", "stdout"])
async def test_a_descriptor_that_is_closed_is_told(standard: Standard, which: str) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    closed = os.dup(null)
    os.close(closed)
    standard(null, null)
    before = open_fds()
    setattr(stdio, f"_{which.upper()}", closed)
    with pytest.raises(EndpointError, match=r"stdio: .*; is it closed"):
        async with accepted(StdioEndpoint()):
            pass
    assert open_fds() == before


async def test_only_its_own_descriptors_are_closed(standard: Standard) -> None:
    (stdin, writer), (reader, stdout) = os.pipe(), os.pipe()
    standard(stdin, stdout)
    before = open_fds()
    async with accepted(StdioEndpoint()):
        assert len(open_fds() - before) >= 2
    assert open_fds() == before
    os.close(writer)
    os.close(reader)


async def test_bytes_that_are_in_the_pipe_are_not_lost_when_it_is_opened_anew(
    standard: Standard,
) -> None:
    (stdin, writer), (reader, stdout) = os.pipe(), os.pipe()
    standard(stdin, stdout)
    os.write(writer, b"written before")
    os.close(writer)
    async with accepted(StdioEndpoint()) as application:
        assert await read_some(application) == b"written before"
        assert await read_some(application) == b""
    os.close(reader)


async def test_the_reader_of_our_stdout_sees_its_end_only_with_the_last_descriptor(
    standard: Standard,
) -> None:
    (stdin, writer), (reader, stdout) = os.pipe(), os.pipe()
    standard(stdin, stdout)
    async with accepted(StdioEndpoint()) as application:
        await write(application, b"down")
        application.stream.end()
    os.set_blocking(reader, False)
    assert os.read(reader, 10) == b"down"
    with pytest.raises(BlockingIOError):
        os.read(reader, 10)
    os.close(writer)
    os.close(reader)
