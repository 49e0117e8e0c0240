"""Local ends of the executable: who may use them, what is left alone, and what programs get."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Offered
from tests.cli.tools import read_all, run
from tests.conftest import Spicebridge

Start = Callable[..., Spicebridge]

FOR_US = {
    "SPICEBRIDGE_PASSWORD": "secret",
    "SPICE_PROXY": "http://user:secret@127.0.0.1:3128",
    "LISTEN_FDS": "1",
    "LISTEN_PID": "1",
    "LISTEN_FDNAMES": "secret",
    "WATCHDOG_USEC": "9000000000",
    "WATCHDOG_PID": "1",
}
"""Variables that no program of ours is to see; those of a service manager are for another pid."""

TELLS = """sh -c 'ls /proc/self/fd; cat /proc/self/status; env'"""


@pytest.fixture
def open_to_all() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_to_all")
@pytest.mark.parametrize(
    ("end", "made"),
    [("unixsocket", ["end"]), ("pipe", ["end.in", "end.out"])],
    ids=["unixsocket", "pipe"],
)
@pytest.mark.parametrize("perm", ["", "0660"])
def test_a_local_end_is_for_whom_it_was_asked_for(
    end: str, made: list[str], perm: str, spicebridge: Start, offered: Offered, short_tmp: Path
) -> None:
    asked = f",perm={perm}" if perm else ""
    bridge = spicebridge(
        *(offered.uri, "--custom-channel", f"{end}={short_tmp}/end,channelid=128{asked}")
    )
    modes = {stat.S_IMODE((short_tmp / name).lstat().st_mode) for name in made}
    assert modes == {int(perm or "0600", 8)}
    assert bridge.stop() == 0
    assert not [path for path in short_tmp.iterdir() if path.name.startswith("end")]


def test_after_a_kill_the_next_one_has_the_same_ends(
    spicebridge: Start, offered: Offered, short_tmp: Path
) -> None:
    ends = (f"unixsocket={short_tmp}/end", f"pipe={short_tmp}/end", f"pty={short_tmp}/end.tty")
    ports = ("solo", "alpha.one", "alpha.two")
    specs = [
        argument
        for end, port in zip(ends, ports, strict=True)
        for argument in ("--custom-channel", f"{end},port={port}")
    ]
    spicebridge(offered.uri, *specs).stop(signal.SIGKILL)
    assert (short_tmp / "end").is_socket()
    assert (short_tmp / "end.tty").is_symlink()
    assert spicebridge(offered.uri, *specs).stop() == 0
    left = sorted(path.name for path in short_tmp.iterdir() if path.name.startswith("end"))
    assert left == ["end.in", "end.out"]  # they were there when the second began


IN_THE_WAY = {
    "live": ("unixsocket={}/end", "another program answers there"),
    "link": ("unixsocket={}/end", "it exists and is no socket"),
    "fifo": ("unixsocket={}/end", "it exists and is no socket"),
    "file-pipe": ("pipe={}/end", "end.in exists and is no FIFO"),
    "link-pipe": ("pipe={}/end", "end.in is a symbolic link, which is not followed"),
    "link-pty": ("pty={}/end", "cannot create the link: File exists"),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_way_is_told_in_a_line_and_stays(
    kind: str, offered: Offered, short_tmp: Path
) -> None:
    spec, says = IN_THE_WAY[kind]
    path = short_tmp / ("end.in" if kind.endswith("-pipe") else "end")
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        match kind.partition("-")[0]:
            case "live":
                listener.bind(str(path))
                listener.listen()
            case "link":
                path.symlink_to(short_tmp / "nowhere")
            case "fifo":
                os.mkfifo(path)
            case _:
                path.write_text("precious")
        before = path.lstat()
        finished = run(
            *(offered.uri, "--custom-channel", f"{spec.format(short_tmp)},channelid=128"),
        )
        (error,) = finished.errors()
        assert says in error
        assert finished.code == 9
        after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (
        *(before.st_ino, before.st_mode, before.st_mtime_ns),
    )


def test_a_program_gets_nothing_but_its_own(
    spicebridge: Start, offered: Offered, short_tmp: Path
) -> None:
    """On either side of a channel."""
    secret, other = os.pipe()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_tmp / "app"))
        listener.listen()
        try:
            spicebridge(
                *("serve", "--listen", f"unix:{short_tmp}/spice"),
                *("--custom-channel", f"channelid=128,exec={TELLS}"),
                env=FOR_US,
                pass_fds=(secret,),
            )
            spicebridge(
                f"spice+unix://{short_tmp}/spice",
                *("--custom-channel", f"channelid=128,unixsocket={short_tmp}/app,mode=connect"),
                env={"SPICEBRIDGE_PASSWORD": "secret"},
                ready=False,
            )
            app, _ = listener.accept()
            with app:
                assert_own(read_all(app).decode())
        finally:
            os.close(secret)
            os.close(other)


def assert_own(told: str) -> None:
    lines = told.splitlines()
    numbers = [line for line in lines if line.isdecimal()]
    assert set(numbers) <= {"0", "1", "2", "3"}  # 3 is the folder that ls reads
    status = dict(line.split(":\t") for line in lines if line.startswith(("SigBlk", "SigIgn")))
    assert int(status["SigBlk"], 16) == 0
    assert not int(status["SigIgn"], 16) & 1 << signal.SIGPIPE - 1
    names = {line.partition("=")[0] for line in lines if "=" in line}
    assert "PATH" in names
    assert not names & set(FOR_US)
    assert "secret" not in told


def test_the_program_that_tells_the_password_gets_nothing_but_its_own(short_tmp: Path) -> None:
    command = (
        f"""sh -c '(ls /proc/self/fd; cat /proc/self/status; env) >{short_tmp}/told; echo x'"""
    )
    secret, other = os.pipe()
    finished = run(
        *("list", f"spice+unix://{short_tmp}/nobody", "--password-command", command),
        env=FOR_US,
        pass_fds=(secret,),
    )
    os.close(secret)
    os.close(other)
    assert finished.code == 3
    assert_own((short_tmp / "told").read_text())
