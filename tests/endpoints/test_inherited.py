"""``fd=N``: a descriptor that our parent has opened."""

from __future__ import annotations

import os
import pty
import socket
import tty

import pytest

from spicebridge import EndpointError, InheritedEndpoint
from tests.conftest import PATIENCE
from tests.endpoints.tools import accepted, open_fds, read_exactly, read_some, write


async def test_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(PATIENCE)
        endpoint = InheritedEndpoint(theirs.detach())
        assert (endpoint.waits, endpoint.repeats) == (False, False)
        async with accepted(endpoint) as application:
            ours.sendall(b"up")
            assert await read_exactly(application, 2) == b"up"
            await write(application, b"down")
            assert ours.recv(4) == b"down"
            application.stream.end()
            assert ours.recv(1) == b""
            ours.sendall(b"answer")
            assert await read_exactly(application, 6) == b"answer"


async def test_a_terminal() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    try:
        async with accepted(InheritedEndpoint(slave)) as application:
            os.write(master, b"up")
            assert await read_exactly(application, 2) == b"up"
            await write(application, b"down")
            assert os.read(master, 4) == b"down"
    finally:
        os.close(master)


async def test_a_terminal_whose_other_side_has_been_closed_is_at_its_end() -> None:
    master, slave = pty.openpty()
    async with accepted(InheritedEndpoint(slave)) as application:
        os.close(master)
        assert await read_some(application) == b""


async def test_it_is_ours_alone_and_closed_with_the_application() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        fd = theirs.detach()
        async with accepted(InheritedEndpoint(fd)):
            assert fd in open_fds()
        assert fd not in open_fds()
        ours.settimeout(PATIENCE)
        assert ours.recv(1) == b""


async def test_a_number_that_is_not_open() -> None:
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises(EndpointError, match=f"fd={fd} is not open"):
        await InheritedEndpoint(fd).open()


@pytest.mark.parametrize(("flags", "way"), [(os.O_RDONLY, "reading"), (os.O_WRONLY, "writing")])
async def test_a_descriptor_that_is_open_one_way(flags: int, way: str) -> None:
    fd = os.open(os.devnull, flags)
    try:
        with pytest.raises(EndpointError, match=f"fd={fd} is open for {way} only"):
            await InheritedEndpoint(fd).open()
    finally:
        os.close(fd)
