"""A Linux guest: programs at its virtio ports, and applications at our sockets."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.peers.guest import Guest
from tests.peers.processes import wait_until
from tests.real.tools import (
    JSON_LOG,
    MIB,
    Start,
    connection,
    exchange,
    list_rows,
    receive,
    receive_to_end,
    sha256,
    wait_event,
)

pytestmark = pytest.mark.real_peer

EXCHANGED = "com.example.exchange"
WATCHED = "com.example.watched"
CLOSED = "com.example.closed"
SIZE = 32 * MIB
GUEST_TIMEOUT = 90.0


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with Guest(tmp_path_factory.mktemp("guest"), EXCHANGED, WATCHED, CLOSED) as running:
        yield running
        assert running.qmp("query-status")["status"] == "running"


@pytest.fixture(autouse=True)
def tidy(guest: Guest) -> Iterator[None]:
    """Nobody in the guest has a port open before or after a test."""
    yield
    guest.run("killall portpump cat sleep 2>/dev/null; rm -f /tmp/*; true")


def pump(guest: Guest, port: str) -> None:
    """Have a program in the guest keep a port open, noting the host's coming and going."""
    guest.run(
        ": >/tmp/got; : >/tmp/log; "  # there before the first look at them
        f"sleep 1000 | portpump /dev/virtio-ports/{port} >>/tmp/got 2>>/tmp/log &"
    )


def lines(guest: Guest) -> list[str]:
    return guest.run("cat /tmp/log").split()


def wait_lines(guest: Guest, expected: list[str]) -> None:
    wait_until(
        lambda: lines(guest) == expected,
        what=f"the guest does not see {expected}",
        timeout=PATIENCE,
    )


def wait_host(guest: Guest, port: str, connected: bool) -> None:
    wait_until(
        lambda: guest.host_connected(port) is connected,
        what=f"host_connected of {port} does not become {connected}",
        timeout=PATIENCE,
    )


def test_32_mib_each_way_at_the_same_time(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        guest.uri, "--custom-channel", f"port={EXCHANGED},unixsocket={path}", *JSON_LOG
    )
    theirs = guest.run(
        f"head -c {SIZE} /dev/urandom >/tmp/data; sha256sum </tmp/data", timeout=GUEST_TIMEOUT
    ).split()[0]
    guest.run(
        f"(portpump /dev/virtio-ports/{EXCHANGED} {SIZE} </tmp/data | sha256sum >/tmp/got; "
        "mv /tmp/got /tmp/done) >/dev/null 2>&1 &"
    )
    ours = os.urandom(SIZE)
    with connection(path) as sock:
        assert sha256(exchange(sock, ours, SIZE)) == theirs
        guest.run("until [ -e /tmp/done ]; do usleep 50000; done", timeout=GUEST_TIMEOUT)
        assert guest.run("cat /tmp/done").split()[0] == sha256(ours)
    record = wait_event(running, "unlinked")
    assert (record["up"], record["down"]) == (SIZE, SIZE)


def test_the_guest_sees_its_port_open_and_close_as_applications_come_and_go(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    (number,) = [row["id"] for row in list_rows(guest.uri) if row["port"] == WATCHED]
    # by its number, since finding a name links the port for a moment
    running = spicebridge(
        guest.uri,
        "--custom-channel",
        f"channelid=port,instance={number},unixsocket={path}",
        *JSON_LOG,
    )
    wait_host(guest, WATCHED, False)
    pump(guest, WATCHED)
    for times in range(1, 4):
        with connection(path) as sock:
            wait_lines(guest, [*["connected", "disconnected"] * (times - 1), "connected"])
            assert guest.host_connected(WATCHED)
            sock.sendall(b"x" * times)
        wait_event(running, "app-gone", count=times)
        wait_lines(guest, ["connected", "disconnected"] * times)
        assert not guest.host_connected(WATCHED)
    assert running.stop() == 0
    assert guest.run("cat /tmp/got") == "xxxxxx"


def test_attach_always_keeps_the_port_open_and_holds_what_comes(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        guest.uri,
        "--custom-channel",
        f"port={WATCHED},unixsocket={path},attach=always,on-close=keep",
        *JSON_LOG,
    )
    wait_event(running, "linked")
    wait_host(guest, WATCHED, True)
    guest.run(f"echo one >/dev/virtio-ports/{WATCHED}")
    with connection(path) as sock:
        assert receive(sock, 4) == b"one\n"
    wait_event(running, "app-gone")
    assert guest.host_connected(WATCHED)
    guest.run(f"echo two >/dev/virtio-ports/{WATCHED}")
    with connection(path) as sock:
        assert receive(sock, 4) == b"two\n"
    wait_event(running, "app-gone", count=2)
    assert guest.host_connected(WATCHED)
    assert running.stop() == 0
    wait_host(guest, WATCHED, False)


def test_a_guest_that_closes_its_port_gives_end_of_file_behind_all_bytes(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        guest.uri, "--custom-channel", f"port={CLOSED},unixsocket={path}", *JSON_LOG
    )
    size = 4 * MIB
    sent = guest.run(f"head -c {size} /dev/urandom >/tmp/data; sha256sum </tmp/data").split()[0]
    for times in (1, 2):
        with connection(path) as sock:
            wait_event(running, "linked", count=times)
            guest.run(f"cat /tmp/data >/dev/virtio-ports/{CLOSED} 2>/tmp/log &")
            got = receive_to_end(sock)
            assert (len(got), sha256(got)) == (size, sent)
        wait_event(running, "app-gone", count=times)
    assert running.stop() == 0


def test_an_application_that_reads_late_gets_all_before_the_end_of_file(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    """What is on its way when the guest closes is more than the buffers of the sockets hold."""
    path = short_tmp / "s"
    running = spicebridge(
        guest.uri, "--custom-channel", f"port={CLOSED},unixsocket={path}", *JSON_LOG
    )
    size = MIB
    sent = guest.run(f"head -c {size} /dev/urandom >/tmp/data; sha256sum </tmp/data").split()[0]
    with connection(path) as sock:
        wait_event(running, "linked")
        guest.run(f"cat /tmp/data >/dev/virtio-ports/{CLOSED}")  # it has ended: all is on its way
        got = receive_to_end(sock)
        assert (len(got), sha256(got)) == (size, sent)
    assert running.stop() == 0


def test_keep_rides_out_a_guest_that_closes_and_opens_its_port(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    spicebridge(
        guest.uri, "--custom-channel", f"port={CLOSED},unixsocket={path},on-close=keep", "-q"
    )
    with connection(path) as sock:
        for number in range(5):
            text = f"round {number}\n"
            guest.run(f"printf '{text}' >/dev/virtio-ports/{CLOSED}")
            assert receive(sock, len(text)) == text.encode()
        # what is sent while it is closed arrives once it is open again
        sock.sendall(b"late\n")
        assert guest.run(f"head -n 1 /dev/virtio-ports/{CLOSED}") == "late\n"


def test_what_is_sent_before_the_guest_opens_its_port_waits_for_it(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        guest.uri, "--custom-channel", f"port={CLOSED},unixsocket={path}", *JSON_LOG
    )
    with connection(path) as sock:
        sock.sendall(b"early\n")
        wait_event(running, "linked")
        assert guest.run(f"head -n 1 /dev/virtio-ports/{CLOSED}", timeout=PATIENCE) == "early\n"


def test_all_that_was_sent_before_a_close_arrives(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    """The guest reads slower than the application sends, which closes without waiting."""
    path = short_tmp / "s"
    running = spicebridge(
        guest.uri, "--custom-channel", f"port={EXCHANGED},unixsocket={path}", *JSON_LOG
    )
    pump(guest, EXCHANGED)
    data = os.urandom(8 * MIB)
    with connection(path) as sock:
        sock.sendall(data)
    wait_event(running, "unlinked")
    guest.run(
        f"until [ $(stat -c %s /tmp/got) -ge {len(data)} ]; do usleep 50000; done",
        timeout=GUEST_TIMEOUT,
    )
    assert guest.run("sha256sum </tmp/got", timeout=GUEST_TIMEOUT).split()[0] == sha256(data)


def test_two_ports_of_one_session_at_the_same_time(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    names = [EXCHANGED, WATCHED]
    paths = [short_tmp / "0", short_tmp / "1"]
    options = [
        word
        for name, path in zip(names, paths, strict=True)
        for word in ("--custom-channel", f"port={name},unixsocket={path}")
    ]
    spicebridge(guest.uri, *options)
    for name in names:
        # an echo: what portpump gets goes back through a FIFO
        guest.run(
            f"mkfifo /tmp/{name}; portpump /dev/virtio-ports/{name} "
            f"<>/tmp/{name} >/tmp/{name} 2>/dev/null &"
        )
    data = [os.urandom(MIB) for _ in names]
    got = [b""] * len(names)

    def one(index: int) -> None:
        with connection(paths[index]) as sock:
            got[index] = exchange(sock, data[index], len(data[index]))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert got == data
