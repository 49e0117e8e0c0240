"""The webdav channel: curl in a guest, spice-webdavd, and what serves a folder on our side."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spicebridge.protocol.mux import FORGET_AFTER
from tests.conftest import PATIENCE, Spicebridge
from tests.peers import glib_client
from tests.peers.guest import Guest
from tests.peers.nginx import Nginx
from tests.peers.processes import wait_until
from tests.peers.webdavd import PORT, URL, Webdavd
from tests.real.tools import JSON_LOG, MIB, Start, connection, events, receive, sha256, wait_event

pytestmark = pytest.mark.real_peer

BIG = 64 * MIB
BIG_TIMEOUT = 180.0

FRAME = struct.Struct("<qH")


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with Guest(tmp_path_factory.mktemp("guest"), PORT) as running:
        yield running
        assert running.qmp("query-status")["status"] == "running"


@pytest.fixture(autouse=True)
def webdavd(guest: Guest) -> Iterator[None]:
    """Each test has a spice-webdavd that has not seen any other's streams."""
    with Webdavd(guest):
        yield
        guest.run("killall -q -KILL curl; rm -rf /tmp/*.*; true")


@pytest.fixture
def folder(short_tmp: Path) -> Path:
    """What the guest is to see."""
    path = short_tmp / "folder"
    path.mkdir()
    return path


@pytest.fixture
def nginx(short_tmp: Path, folder: Path) -> Iterator[Nginx]:
    state = short_tmp / "nginx"
    state.mkdir()
    with Nginx(state, folder) as running:
        yield running


@pytest.fixture(params=["share", "server", "programs"])
def bridge(
    request: pytest.FixtureRequest, guest: Guest, spicebridge: Start, folder: Path
) -> Spicebridge:
    """The guest has the folder, each time through something else."""
    if request.param == "share":
        end = f"share={folder}"
    else:
        server: Nginx = request.getfixturevalue("nginx")
        end = f"unixsocket={server.path}"
        if request.param == "programs":
            end = f"exec=socat - UNIX-CONNECT:{server.path}"
    return spicebridge(guest.uri, "--custom-channel", f"channelid=webdav,{end}", *JSON_LOG)


def curl(guest: Guest, *words: str, timeout: float = PATIENCE) -> str:
    """What curl in the guest says; it must succeed."""
    return guest.run(f"curl -sSf {shlex.join(words)}", timeout=timeout)


def noise(path: Path, size: int) -> str:
    """Makes a file; returns its digest."""
    data = os.urandom(size)
    path.write_bytes(data)
    return sha256(data)


def digest(path: Path) -> str:
    return sha256(path.read_bytes())


def guest_digest(guest: Guest, path: str) -> str:
    return guest.run(f"sha256sum <{path}", timeout=PATIENCE).split()[0]


def test_64_mib_down_and_up(guest: Guest, bridge: Spicebridge, folder: Path) -> None:
    sent = noise(folder / "down", BIG)
    curl(guest, "-o", "/tmp/big.bin", f"{URL}/down", timeout=BIG_TIMEOUT)
    assert guest_digest(guest, "/tmp/big.bin") == sent
    curl(guest, "-T", "/tmp/big.bin", f"{URL}/up", timeout=BIG_TIMEOUT)
    assert digest(folder / "up") == sent


def test_listing_ranges_moving_and_deleting(
    guest: Guest, bridge: Spicebridge, folder: Path
) -> None:
    noise(folder / "data", 100_000)
    (folder / "with space").mkdir()
    found = curl(guest, "-X", "PROPFIND", "-H", "Depth: 1", f"{URL}/")
    for name in ("/data<", "/with%20space/<"):
        assert name in found
    curl(guest, "-r", "50000-59999", "-o", "/tmp/range.bin", f"{URL}/data")
    assert guest_digest(guest, "/tmp/range.bin") == sha256(
        (folder / "data").read_bytes()[50_000:60_000]
    )
    curl(guest, "-X", "MKCOL", f"{URL}/new/")
    curl(guest, "-X", "MOVE", "-H", f"Destination: {URL}/new/moved", f"{URL}/data")
    assert [path.name for path in (folder / "new").iterdir()] == ["moved"]
    assert not (folder / "data").exists()
    curl(guest, "-X", "DELETE", f"{URL}/new/moved")
    assert not (folder / "new" / "moved").exists()


def test_50_connections_that_are_kept_alive(
    guest: Guest, bridge: Spicebridge, folder: Path
) -> None:
    for number in range(200):
        noise(folder / f"{number:03}", 40_000)
    connected = fetch_parallel(guest, "[000-199]", connections=50)
    assert connected == 50
    wait_event(bridge, "stream-end", count=50)
    assert len(events(bridge, "stream-open")) == 50
    assert fetched(guest) == kept(folder, 200)


def fetch_parallel(guest: Guest, names: str, *, connections: int) -> int:
    """Fetches many files to /tmp/got.NAME; returns how many connections that took."""
    counts = guest.run(
        f"curl -Zf --no-progress-meter --parallel-immediate --parallel-max {connections} "
        f"-w '%{{num_connects}}\\n' -o '/tmp/got.#1' '{URL}/{names}'",
        timeout=BIG_TIMEOUT,
    )
    return sum(map(int, counts.split()))


def fetched(guest: Guest) -> str:
    """The digest of all that `fetch_parallel` has fetched."""
    return guest.run("cat /tmp/got.* | sha256sum", timeout=PATIENCE).split()[0]


def kept(folder: Path, count: int) -> str:
    """What that has to be."""
    return sha256(b"".join((folder / f"{number:03}").read_bytes() for number in range(count)))


def test_20_go_on_while_one_does_not_read(guest: Guest, bridge: Spicebridge, folder: Path) -> None:
    # once the guest's kernel holds no more for the one, spice-webdavd has all of them wait
    guest.run(
        "for way in r w; do echo 4096 16777216 16777216 >/proc/sys/net/ipv4/tcp_${way}mem; done"
    )
    sent = noise(folder / "slow", 8 * MIB)
    for number in range(20):
        noise(folder / f"{number:03}", MIB // 4)
    guest.run(
        f"curl -sSf -o /tmp/slow.bin {URL}/slow >/tmp/slow.log 2>&1 & echo $! >/tmp/slow.pid\n"
        "until [ -s /tmp/slow.bin ]; do usleep 1000; done; kill -STOP $(cat /tmp/slow.pid)",
        timeout=PATIENCE,
    )
    assert fetch_parallel(guest, "[000-019]", connections=20) == 20
    assert fetched(guest) == kept(folder, 20)
    assert int(guest.run("wc -c </tmp/slow.bin")) < 8 * MIB
    guest.run("kill -CONT $(cat /tmp/slow.pid)")
    wait_gone(guest, "/tmp/slow.pid")
    assert guest_digest(guest, "/tmp/slow.bin") == sent


def wait_gone(guest: Guest, file: str) -> None:
    """Waits for the end of the process in the guest whose id is in a file."""
    guest.run(f"while [ -d /proc/$(cat {file}) ]; do usleep 5000; done", timeout=PATIENCE)


def test_a_program_that_is_stopped_stops_no_other(
    guest: Guest, spicebridge: Start, nginx: Nginx, folder: Path
) -> None:
    bridge = spicebridge(
        guest.uri,
        "--custom-channel",
        f"channelid=webdav,exec=socat - UNIX-CONNECT:{nginx.path}",
        *JSON_LOG,
    )
    for number in range(20):
        noise(folder / f"{number:03}", MIB // 4)
    guest.run(
        f"head -c {MIB // 2} /dev/urandom >/tmp/sent.bin\n"
        "(until [ -e /tmp/go.on ]; do usleep 5000; done; cat /tmp/sent.bin) | "
        f"curl -sSf -T - {URL}/up >/tmp/up.log 2>&1 & echo $! >/tmp/up.pid"
    )
    program = running_socat(bridge)
    os.kill(program, signal.SIGSTOP)
    guest.run(": >/tmp/go.on")
    assert fetch_parallel(guest, "[000-019]", connections=20) == 20
    assert fetched(guest) == kept(folder, 20)
    assert not (folder / "up").exists()
    os.kill(program, signal.SIGCONT)
    wait_gone(guest, "/tmp/up.pid")
    assert digest(folder / "up") == guest_digest(guest, "/tmp/sent.bin")


def test_a_program_that_is_stopped_for_too_long_is_ended_alone(
    guest: Guest, spicebridge: Start, nginx: Nginx, folder: Path
) -> None:
    bridge = spicebridge(
        guest.uri,
        "--custom-channel",
        f"channelid=webdav,exec=socat - UNIX-CONNECT:{nginx.path},stall=1",
        *JSON_LOG,
    )
    sent = noise(folder / "data", MIB)
    guest.run(
        f"(until [ -e /tmp/go.on ]; do usleep 5000; done; head -c {8 * MIB} /dev/zero) | "
        f"curl -sSf -T - {URL}/up >/tmp/up.log 2>&1 &"
    )
    program = running_socat(bridge)
    os.kill(program, signal.SIGSTOP)
    guest.run(": >/tmp/go.on")
    curl(guest, "-o", "/tmp/data.bin", f"{URL}/data")
    assert guest_digest(guest, "/tmp/data.bin") == sent
    wait_event(bridge, "stream-stalled")
    wait_until(
        lambda: not Path(f"/proc/{program}").exists(), what="it is not ended", timeout=PATIENCE
    )


def running_socat(bridge: Spicebridge) -> int:
    """The process id of the program of the only stream, once it is what it is to be."""
    wait_until(
        lambda: [program.read_text() for program in children(bridge)] == ["socat\n"],
        what="no socat runs",
        timeout=PATIENCE,
    )
    return int(children(bridge)[0].parent.name)


def children(bridge: Spicebridge) -> list[Path]:
    """The files with the names of the programs that it has started."""
    pid = bridge.process.pid
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{child}/comm") for child in found]


def test_a_program_that_answers_once_and_ends(
    guest: Guest, spicebridge: Start, folder: Path
) -> None:
    bridge = spicebridge(
        guest.uri,
        "--custom-channel",
        f"channelid=webdav,exec=busybox httpd -i -h {folder}",
        *JSON_LOG,
    )
    sent = noise(folder / "data.bin", 4 * MIB)
    for times in (1, 2, 3):
        curl(guest, "-o", "/tmp/data.bin", f"{URL}/data.bin")
        assert guest_digest(guest, "/tmp/data.bin") == sent
        wait_event(bridge, "stream-end", count=times)


def test_the_short_form(guest: Guest, spicebridge: Start, folder: Path) -> None:
    spicebridge(guest.uri, "--share", str(folder))
    sent = noise(folder / "data", MIB)
    curl(guest, "-o", "/tmp/data.bin", f"{URL}/data")
    assert guest_digest(guest, "/tmp/data.bin") == sent


def test_an_open_connection_is_served_again_after_the_server_has_closed_it(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    # spice-webdavd does not tell its HTTP client, which goes on with the connection
    path = short_tmp / "http"
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(PATIENCE)
        server.bind(str(path))
        server.listen()
        bridge = spicebridge(
            guest.uri, "--custom-channel", f"channelid=webdav,unixsocket={path}", *JSON_LOG
        )
        guest.run(
            "wait_for() { until [ -e /tmp/$1 ]; do usleep 5000; done; }; "
            # it keeps its side open: spice-webdavd forgets a program that ends it
            "(echo first; wait_for go.on; echo second; wait_for all.over) | "
            "nc 127.0.0.1 9843 >/tmp/got.log 2>&1 &"
        )
        answer(server, b"first\n")
        wait_event(bridge, "stream-end")
        time.sleep(FORGET_AFTER)  # what comes sooner is taken for the rest of the old stream
        guest.run(": >/tmp/go.on")
        answer(server, b"second\n")
        wait_until(
            lambda: guest.run("cat /tmp/got.log") == "answer\nanswer\n",
            what="not answered",
            timeout=PATIENCE,
        )
        guest.run(": >/tmp/all.over")


def answer(server: socket.socket, request: bytes) -> None:
    """Answers one request and closes the connection."""
    sock, _ = server.accept()
    with sock:
        sock.settimeout(PATIENCE)
        assert receive(sock, len(request)) == request
        sock.sendall(b"answer\n")


def test_raw_frames(guest: Guest, spicebridge: Start, short_tmp: Path) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        guest.uri, "--custom-channel", f"channelid=webdav,demux=off,unixsocket={path}", *JSON_LOG
    )
    with connection(path) as sock:
        wait_event(running, "linked")
        guest.run(f"curl -sSf {URL}/one {URL}/two >/tmp/got.bin 2>/tmp/got.log &")
        stream, request = receive_frame(sock)
        assert request.startswith(b"GET /one HTTP/1.1\r\n")
        send_frame(sock, stream, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        send_frame(sock, stream, b"first")
        same, request = receive_frame(sock)
        assert same == stream
        assert request.startswith(b"GET /two HTTP/1.1\r\n")
        body = os.urandom(0xFFFF)
        send_frame(sock, stream, b"HTTP/1.1 200 OK\r\nContent-Length: 65535\r\n\r\n")
        send_frame(sock, stream, body)
        assert receive_frame(sock) == (stream, b"")
    assert guest_digest(guest, "/tmp/got.bin") == sha256(b"first" + body)


def receive_frame(sock: socket.socket) -> tuple[int, bytes]:
    stream, size = FRAME.unpack(receive(sock, FRAME.size))
    return stream, receive(sock, size)


def send_frame(sock: socket.socket, stream: int, data: bytes) -> None:
    sock.sendall(FRAME.pack(stream, len(data)) + data)


def test_what_spice_client_glib_does(guest: Guest, folder: Path) -> None:
    # the measure for ours, and the proof that guest and spice-webdavd are as they should be
    sent = noise(folder / "down", 8 * MIB)
    for number in range(40):
        noise(folder / f"{number:03}", 40_000)
    with glib_client.share(guest.uri, folder) as client:
        client.wait_message(port=PORT, opened=True, timeout=PATIENCE)
        curl(guest, "-o", "/tmp/big.bin", f"{URL}/down")
        assert guest_digest(guest, "/tmp/big.bin") == sent
        # to Expect: 100-continue libphodav says 201 at once, and has an empty file
        curl(guest, "-H", "Expect:", "-T", "/tmp/big.bin", f"{URL}/up")
        assert digest(folder / "up") == sent
        assert fetch_parallel(guest, "[000-039]", connections=10) == 10
    assert fetched(guest) == kept(folder, 40)
