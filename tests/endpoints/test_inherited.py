"""``fd=``: a descriptor that our parent has opened, or a socket where it listens."""

from __future__ import annotations

import os
import pty
import socket
import tty
from collections.abc import Callable
from pathlib import Path

import pytest

from spicebridge import EndpointError, InheritedEndpoint, InheritedListener, is_listening
from tests.conftest import PATIENCE
from tests.endpoints.tools import accepted, connect, open_fds, read_exactly, read_some, write


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


async def test_a_socket_that_listens_is_no_application(short_tmp: Path) -> None:
    says = "is a socket that listens; write mode=listen"
    with unix(short_tmp / "s") as sock, pytest.raises(EndpointError, match=says):
        await InheritedEndpoint(sock.fileno()).open()


async def test_programs_do_not_get_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.set_inheritable(True)
        await InheritedEndpoint(theirs.fileno()).open()
        assert not theirs.get_inheritable()


async def test_linger_is_that_of_its_kind_unless_it_is_said() -> None:
    for given, linger in ((None, None), (3.0, 3.0)):
        ours, theirs = socket.socketpair()
        with ours:
            async with accepted(InheritedEndpoint(theirs.detach(), linger=given)) as application:
                assert application.linger == linger


# A socket that listens


def unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def abstract(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"\0{path}")
    sock.listen()
    return sock


def tcp(path: Path) -> socket.socket:
    del path
    return socket.create_server(("127.0.0.1", 0))


def tcp6(path: Path) -> socket.socket:
    del path
    return socket.create_server(("::1", 0), family=socket.AF_INET6)


Make = Callable[[Path], socket.socket]


@pytest.mark.parametrize("make", [unix, abstract, tcp, tcp6])
async def test_applications_connect_to_it(short_tmp: Path, make: Make) -> None:
    path = short_tmp / "s"
    with make(path) as sock, socket.socket(sock.family) as client:
        sock.set_inheritable(True)
        client.settimeout(PATIENCE)
        client.connect(sock.getsockname())
        endpoint = InheritedListener(sock.fileno(), "fd=console")
        assert (endpoint.name, endpoint.waits, endpoint.repeats) == ("fd=console", True, True)
        async with accepted(endpoint) as application:
            places: dict[Make, str] = {
                unix: f"unix:{path}",
                abstract: f"unix:@{path}",
                tcp: f"127.0.0.1:{sock.getsockname()[1]}",
                tcp6: f"[::1]:{sock.getsockname()[1]}",
            }
            assert endpoint.name == f"fd=console ({places[make]})"
            assert application.linger == (None if sock.family == socket.AF_UNIX else 0.5)
            assert not sock.get_inheritable()
            client.sendall(b"up")
            assert await read_exactly(application, 2) == b"up"
            await write(application, b"down")
            assert client.recv(4) == b"down"


async def test_it_belongs_to_who_made_it(short_tmp: Path) -> None:
    with unix(short_tmp / "s") as sock:
        before = open_fds()
        for _ in range(2):  # it can be taken again, as after a question for the password
            async with InheritedListener(sock.fileno()):
                assert len(open_fds()) > len(before)
            assert (short_tmp / "s").is_socket()
            connect(short_tmp / "s").close()
        assert open_fds() == before
        assert is_listening(sock.fileno())


async def test_linger_of_its_applications_can_be_said() -> None:
    with (
        tcp(Path()) as sock,
        socket.create_connection(sock.getsockname()),
    ):
        async with accepted(InheritedListener(sock.fileno(), linger=3)) as application:
            assert application.linger == 3


async def test_other_descriptors_are_refused(short_tmp: Path) -> None:
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours, theirs = socket.socketpair()
    with ours, theirs, packets, datagrams, (short_tmp / "file").open("w+") as file:
        packets.bind(f"{short_tmp}/packets")
        packets.listen()
        datagrams.bind(f"{short_tmp}/datagrams")
        before = open_fds()
        for fd in (*(each.fileno() for each in (ours, packets, datagrams, file)), max(before) + 1):
            with pytest.raises(EndpointError, match=f"fd={fd} is no Unix or TCP socket that lis"):
                await InheritedListener(fd).open()
        with pytest.raises(EndpointError, match="is not open"):
            await InheritedListener(ours.fileno()).accept()
        assert open_fds() == before
        assert is_listening(packets.fileno())
        assert not is_listening(ours.fileno())
