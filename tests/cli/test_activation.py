"""``fd=`` with sockets that listen already: those of systemd, by number and by name."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from spicebridge import InheritedEndpoint, InheritedListener, UsageError
from spicebridge.cli import descriptors
from spicebridge.cli.spec import parse_custom_channel
from tests.cli.tools import connect, read_all, read_exactly, run, wait_event
from tests.conftest import Spicebridge

Start = Callable[..., Spicebridge]


@contextmanager
def listening(path: Path) -> Iterator[int]:
    """A descriptor of a socket that listens."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield sock.fileno()


@pytest.fixture
def echoing(spicebridge: Start, short_tmp: Path) -> str:
    """URI of a server whose channel 128 echoes."""
    spicebridge(
        *("serve", "--listen", f"unix:{short_tmp}/spice"),
        "--custom-channel=channelid=128,exec=cat",
    )
    return f"spice+unix://{short_tmp}/spice"


# The executable


@pytest.mark.parametrize("mode", ["", ",mode=listen"], ids=["found", "said"])
def test_applications_come_one_after_another(
    spicebridge: Start, echoing: str, short_tmp: Path, mode: str
) -> None:
    path = short_tmp / "given"
    with listening(path) as fd:
        with connect(path) as early:  # it waits for us
            early.sendall(b"early")
            spec = f"fd={fd}{mode},channelid=128"
            bridge = spicebridge(
                *(echoing, "--log-format=json", "--custom-channel", spec), pass_fds=(fd,)
            )
            assert read_exactly(early, 5) == b"early"
        with connect(path) as late:
            late.sendall(b"late")
            assert read_exactly(late, 4) == b"late"
        ready = wait_event(bridge, "ready")
        assert ready["ends"] == [f"fd={fd} (unix:{path})"]
        assert wait_event(bridge, "app-connected", count=2)["app"].startswith("pid ")
        assert bridge.stop() == 0
        assert path.is_socket()
        with connect(path):  # who comes now waits for the next of us
            pass


def test_programs_get_no_such_descriptor(spicebridge: Start, short_tmp: Path) -> None:
    script = f"ls -l /proc/self/fd > {short_tmp}/fds; cat > /dev/null"
    with listening(short_tmp / "given") as fd:
        server = spicebridge(
            *("serve", "--listen", f"unix:{short_tmp}/spice"),
            *("--custom-channel", f"channelid=128,fd={fd}"),
            *("--custom-channel", f"channelid=129,attach=always,exec=sh -c '{script}'"),
            pass_fds=(fd,),
        )
        assert server.stop() == 0
    listed = (short_tmp / "fds").read_text()
    assert "pipe:" in listed
    assert "socket:" not in listed


def test_each_connection_becomes_a_stream(spicebridge: Start, short_tmp: Path) -> None:
    host, guest = short_tmp / "host", short_tmp / "guest"
    with listening(host) as mine, listening(guest) as theirs:
        spicebridge(
            *("serve", "--listen", f"unix:{short_tmp}/spice"),
            *("--custom-channel", f"channelid=128,demux=on,fd={theirs}"),
            pass_fds=(theirs,),
        )
        spicebridge(
            f"spice+unix://{short_tmp}/spice",
            *("--custom-channel", f"channelid=128,demux=on,fd={mine}"),
            pass_fds=(mine,),
        )
        for number in range(3):
            with connect(host) as waiting, connect(guest) as opener:
                opener.sendall(b"up%d" % number)
                assert read_exactly(waiting, 3) == b"up%d" % number
                waiting.sendall(b"down%d" % number)
                waiting.shutdown(socket.SHUT_WR)
                assert read_all(opener) == b"down%d" % number


REFUSED = {
    "connect-to-listening": ("fd={listening},mode=connect", "is a socket that listens", 9),
    "listen-on-connected": ("fd={connected},mode=listen", "listens for streams", 9),
    "listen-on-file": ("fd={file},mode=listen", "listens for streams", 9),
    "listen-on-nothing": ("fd=77,mode=listen", "fd=77 is no", 9),
    "seqpacket": ("fd={seqpacket}", "listens for streams", 9),
    "mode": ("fd={listening},mode=foo", "mode=foo", 2),
    "perm": ("fd={listening},perm=600", "perm= does not go with fd", 2),
    "name": ("fd=console", "we were given no descriptor of this name", 2),
}


@pytest.mark.parametrize(("spec", "says", "code"), REFUSED.values(), ids=[*REFUSED])
def test_descriptors_that_cannot_be_taken(short_tmp: Path, spec: str, says: str, code: int) -> None:
    ours, theirs = socket.socketpair()
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    file = (short_tmp / "file").open("w+")
    with ours, theirs, packets, file, listening(short_tmp / "given") as fd:
        packets.bind(f"{short_tmp}/packets")
        packets.listen()
        fds = {
            "listening": fd,
            "connected": ours.fileno(),
            "file": file.fileno(),
            "seqpacket": packets.fileno(),
        }
        finished = run(
            "spice://127.0.0.1:1",
            f"--custom-channel={spec.format_map(fds)},channelid=128",
            pass_fds=tuple(fds.values()),
        )
    assert finished.code == code
    (error,) = finished.errors()
    assert says in error


# What the service manager gives


def given(monkeypatch: pytest.MonkeyPatch, **said: str) -> Mapping[int, str]:
    """What is found with these variables."""
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    return descriptors.given()


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The first of two descriptors that were given; others are where it would be."""
    with open(os.devnull) as null:
        fds = [fcntl.fcntl(null, fcntl.F_DUPFD, 900) for _ in range(2)]
    try:
        assert fds[1] == fds[0] + 1
        monkeypatch.setattr(descriptors, "_FIRST", fds[0])
        yield fds[0]
    finally:
        for fd in fds:
            os.close(fd)


def test_descriptors_have_their_names_and_are_not_inherited_on(
    monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    said = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    assert os.get_inheritable(first)
    assert given(monkeypatch, **said) == {first: "a", first + 1: "b"}
    assert not os.get_inheritable(first)
    assert not os.get_inheritable(first + 1)
    assert given(monkeypatch, **{**said, "LISTEN_FDNAMES": "a"}) == {first: "a", first + 1: ""}
    assert given(monkeypatch, **{**said, "LISTEN_FDS": "3"}) == {first: "a", first + 1: "b"}


@pytest.mark.parametrize(
    "wrong", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": "two"}, {"LISTEN_FDS": "-1"}]
)
def test_what_is_not_for_us_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, first: int, wrong: dict[str, str]
) -> None:
    said = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"} | wrong
    assert given(monkeypatch, **said) == {}
    assert os.get_inheritable(first)


def test_a_name_is_that_of_one_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {77: "a", 78: "b", 79: "b", 80: ""}
    monkeypatch.setattr(descriptors, "given", lambda: names)
    endpoint = parse_custom_channel("fd=a,mode=listen,channelid=128").endpoint
    assert isinstance(endpoint, InheritedListener)
    assert (endpoint.name, endpoint._fd) == ("fd=a", 77)
    endpoint = parse_custom_channel("fd=a,channelid=128").endpoint
    assert isinstance(endpoint, InheritedEndpoint)
    assert endpoint._fd == 77
    with pytest.raises(UsageError, match="2 descriptors have this name; use fd=78 and fd=79"):
        parse_custom_channel("fd=b,channelid=128")
    with pytest.raises(UsageError, match=r"no descriptor of this name; there are a, b$"):
        parse_custom_channel("fd=c,channelid=128")
