"""A guest that reboots under traffic: nobody has to lend a hand at the bridge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.peers.guest import Guest
from tests.real.tools import (
    JSON_LOG,
    Start,
    connection,
    events,
    receive_to_end,
    sha256,
    wait_event,
)
from tests.real.traffic import CountedEcho

pytestmark = pytest.mark.real_peer

EOF = "com.example.eof"
KEEP = "com.example.keep"
SAID = "com.example.said"
TIMES = 10
WAYS = 2
SIZE = 256 * 1024


@pytest.fixture
def guest(short_tmp: Path) -> Iterator[Guest]:
    """Two of its ports echo as soon as it has booted."""
    folder = short_tmp / "guest"
    folder.mkdir()
    with Guest(folder, EOF, KEEP, SAID, echo=[EOF, KEEP], webdav=False, reboots=True) as running:
        yield running
        assert running.qmp("query-status")["status"] == "running"


def test_ten_reboots_under_traffic(guest: Guest, spicebridge: Start, short_tmp: Path) -> None:
    """One application sees end of file and connects again; another notices nothing but a gap.

    What the guest has taken and not given back goes with its memory. What the server still had
    for it waits for the next boot: it comes back on the application's next connection.
    """
    eof, keep = short_tmp / "eof", short_tmp / "keep"
    running = spicebridge(
        guest.uri,
        *("--custom-channel", f"port={EOF},unixsocket={eof}"),
        *("--custom-channel", f"port={KEEP},unixsocket={keep},on-close=keep"),
        *JSON_LOG,
    )
    traffic: CountedEcho | None = None
    with connection(keep) as kept_sock:
        kept = CountedEcho(kept_sock)
        for times in range(TIMES + 1):
            with connection(eof) as sock:
                first = traffic.next if traffic else 0
                traffic = CountedEcho(sock, traffic)
                traffic.wait_more()  # the guest has booted
                kept.wait_more()
                if times < TIMES:
                    guest.reset()
                    traffic.wait_cut()
                    kept.give_up()
                else:
                    traffic.end()
                assert traffic.seen >= first, "nothing that this connection sent came back"
        kept.end()
    assert traffic
    assert max(traffic.torn, kept.torn) <= TIMES * WAYS
    wait_event(running, "app-gone", count=TIMES + 2)
    assert running.stop() == 0
    assert not events(running, "error")


def test_all_that_a_guest_said_before_it_was_reset_comes_before_end_of_file(
    guest: Guest, spicebridge: Start, short_tmp: Path
) -> None:
    path = short_tmp / "s"
    running = spicebridge(
        guest.uri, "--custom-channel", f"port={SAID},unixsocket={path}", *JSON_LOG
    )
    with connection(path) as sock:
        wait_event(running, "linked")
        digest = guest.run(
            f"head -c {SIZE} /dev/urandom >/tmp/data; sha256sum </tmp/data; "
            "(cat /tmp/data; touch /tmp/said; sleep 1000) "
            f">/dev/virtio-ports/{SAID} 2>/dev/null & "
            "until [ -e /tmp/said ]; do usleep 5000; done",
            timeout=PATIENCE,
        ).split()[0]
        guest.reset()
        assert sha256(receive_to_end(sock)) == digest
    # and the next that it says goes to the next connection
    with connection(path) as sock:
        wait_event(running, "linked", count=2)
        guest.run(f"echo again >/dev/virtio-ports/{SAID}", timeout=PATIENCE)
        assert receive_to_end(sock) == b"again\n"
