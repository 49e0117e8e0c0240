"""1 GiB of random bytes each way at once, from socat to socat, through bridge and endpoint."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.conftest import Spicebridge
from tests.peers.processes import Process, peak_rss_kib
from tests.real.tools import JSON_LOG, MIB, Start, Task, digest_of_fd, wait_event

pytestmark = pytest.mark.real_peer

GIB = 1024 * MIB
TIMEOUT = 300.0
PEAK_RSS = 80 * 1024  # KiB


def random_stream(size: int) -> Iterator[bytes]:
    """Random bytes, faster than the kernel has them: AES in counter mode under a random key."""
    encryptor = Cipher(algorithms.AES(os.urandom(16)), modes.CTR(os.urandom(16))).encryptor()
    zeros = bytes(MIB)
    for _ in range(size // MIB):
        yield encryptor.update(zeros)


def feed(process: Process, size: int) -> str:
    """Write random bytes to the stdin of a process; return their SHA-256."""
    assert process.popen.stdin is not None
    fd = process.popen.stdin.fileno()
    whole = hashlib.sha256()
    for block in random_stream(size):
        whole.update(block)
        view = memoryview(block)
        while view:
            view = view[os.write(fd, view) :]
    return whole.hexdigest()


def take(process: Process, size: int) -> str:
    """The SHA-256 of what comes out of the stdout of a process."""
    assert process.popen.stdout is not None
    return digest_of_fd(process.popen.stdout.fileno(), size)


@contextmanager
def socat(path: Path) -> Iterator[Process]:
    """A socat between a Unix socket and pipes of ours.

    Its blocks are smaller than what a socket takes when poll says that it takes something: socat's
    writes block, and two that do so at once, each not reading meanwhile, would wait for ever.
    """
    with Process(
        ["socat", "-b", str(64 * 1024), "STDIO", f"UNIX-CONNECT:{path}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        for pipe in (process.popen.stdin, process.popen.stdout):
            assert pipe is not None
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, MIB)
        yield process


def figures(name: str, running: Spicebridge, seconds: float) -> dict[str, float]:
    ticks = os.sysconf("SC_CLK_TCK")
    stat = Path(f"/proc/{running.process.pid}/stat").read_text().rpartition(")")[2].split()
    return {
        f"{name} peak RSS in MiB": round(peak_rss_kib(running.process.pid) / 1024, 1),
        f"{name} CPU seconds": (int(stat[11]) + int(stat[12])) / ticks,
        f"{name} CPU share": round((int(stat[11]) + int(stat[12])) / ticks / seconds, 2),
    }


@pytest.mark.parametrize("channel", ["channelid=128", "port=com.example.big"])
def test_one_gib_each_way(
    spicebridge: Start, short_tmp: Path, record_property: object, channel: str
) -> None:
    guest, app, spice = short_tmp / "guest", short_tmp / "app", short_tmp / "spice"
    endpoint = spicebridge(
        "serve",
        "--listen",
        f"unix:{spice}",
        "--custom-channel",
        f"{channel},unixsocket={guest}",
        *JSON_LOG,
    )
    bridge = spicebridge(
        f"spice+unix://{spice}", "--custom-channel", f"{channel},unixsocket={app}", *JSON_LOG
    )
    with ExitStack() as stack:
        ends = [stack.enter_context(socat(path)) for path in (guest, app)]
        wait_event(endpoint, "app-connected")
        wait_event(bridge, "linked")
        begun = time.monotonic()
        fed = [Task(lambda end=end: feed(end, GIB)) for end in ends]  # type: ignore[misc]
        taken = [Task(lambda end=end: take(end, GIB)) for end in reversed(ends)]  # type: ignore[misc]
        digests = [task.result(TIMEOUT) for task in (*fed, *taken)]
        seconds = time.monotonic() - begun
        numbers = {
            "MB/s each way": round(GIB / seconds / 1e6),
            **figures("bridge", bridge, seconds),
            **figures("endpoint", endpoint, seconds),
        }
    assert digests[:2] == digests[2:]
    gone = wait_event(bridge, "app-gone")
    assert (gone["up"], gone["down"]) == (GIB, GIB)
    for name, number in numbers.items():
        print(f"1 GiB each way, {channel}: {name}: {number}")
        record_property(name, number)  # type: ignore[operator]
    assert peak_rss_kib(bridge.process.pid) < PEAK_RSS
    assert peak_rss_kib(endpoint.process.pid) < PEAK_RSS
    assert bridge.stop() == 0
    assert endpoint.stop() == 0
