"""A folder that curl in a guest fetches over webdav, against spice-client-glib's folder sharing.

One guest; the clients take turns, as QEMU serves one at a time. Emulation bounds both: what counts
is the ratio.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.benchmarks.effort import Effort
from tests.benchmarks.figure import Figure, Peer
from tests.conftest import EXECUTABLE
from tests.peers import glib_client
from tests.peers.guest import Guest
from tests.peers.webdavd import PORT, URL, Webdavd

BIG: Final = 64 << 20
SMALL: Final = 4096
FILES: Final = 200
_TIMEOUT = 300.0

_Times = tuple[float, float]
"""Seconds for the big file, the best of three as other work on this machine only ever adds; and
seconds for all the small ones over one connection."""


def measure(effort: Effort) -> Iterator[Figure]:
    """Runs the pairs; each goes first as often as the other."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        folder = Path(name) / "folder"
        _fill(folder)
        with Guest(Path(name), PORT) as guest:
            runs = [_pair(guest, folder, ours_first=bool(n % 2)) for n in range(effort.guest_pairs)]
    big = [(BIG / 1e6 / ours[0], BIG / 1e6 / theirs[0]) for ours, theirs in runs]
    small = [(FILES / ours[1], FILES / theirs[1]) for ours, theirs in runs]
    for what, unit, pairs in (("64 MiB", "MB/s", big), (f"{FILES} files", "1/s", small)):
        mine, theirs = zip(*pairs, strict=True)
        yield Figure(f"webdav, {what} to a guest", unit, mine, [Peer("P's own sharing", theirs)])


def _fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "big").write_bytes(os.urandom(BIG))
    for number in range(1, FILES + 1):
        (folder / str(number)).write_bytes(os.urandom(SMALL))


def _pair(guest: Guest, folder: Path, *, ours_first: bool) -> tuple[_Times, _Times]:
    if ours_first:
        ours = _ours(guest, folder)
        return ours, _theirs(guest, folder)
    theirs = _theirs(guest, folder)
    return _ours(guest, folder), theirs


def _ours(guest: Guest, folder: Path) -> _Times:
    with subprocess.Popen([EXECUTABLE, guest.uri, "-q", "--share", folder]) as bridge:
        try:
            return _fetch(guest)
        finally:
            bridge.terminate()


def _theirs(guest: Guest, folder: Path) -> _Times:
    with glib_client.share(guest.uri, folder, read_only=True):
        return _fetch(guest)


def _fetch(guest: Guest) -> _Times:
    with Webdavd(guest):
        guest.run(_curl("1"), timeout=_TIMEOUT)  # when it is answered, everything is up
        big = min(_seconds(guest, "big") for _ in range(3))
        return big, _seconds(guest, f"[1-{FILES}]")


def _seconds(guest: Guest, name: str) -> float:
    begun = time.perf_counter()
    guest.run(_curl(name), timeout=_TIMEOUT)
    return time.perf_counter() - begun


def _curl(name: str) -> str:
    return f"curl -sSf '{URL}/{name}' >/dev/null"
