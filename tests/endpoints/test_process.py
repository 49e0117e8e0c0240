"""``exec=``: a program of ours is the application."""

# ruff: noqa: ASYNC240 - what the programs leave behind is in small files

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from spicebridge import ApplicationError, EndpointError, ProcessEndpoint
from spicebridge.endpoints import process
from tests.conftest import PATIENCE
from tests.endpoints.tools import accepted, open_fds, read_exactly, read_some, sleep_until, write


async def test_its_stdin_and_stdout_are_the_application() -> None:
    endpoint = ProcessEndpoint("cat")
    assert (endpoint.waits, endpoint.repeats) == (False, True)
    async with accepted(endpoint) as application:
        await write(application, b"hello")
        assert await read_exactly(application, 5) == b"hello"


async def test_words_are_split_as_a_shell_does_and_no_shell_runs(short_tmp: Path) -> None:
    code = "import sys; print(sys.argv[1:])"
    command = f"""{sys.executable} -c "{code}" 'a b' $HOME "c;d" e\\ f * > {short_tmp}/x"""
    async with accepted(ProcessEndpoint(command)) as application:
        wanted = str(["a b", "$HOME", "c;d", "e f", "*", ">", f"{short_tmp}/x"]).encode() + b"\n"
        assert await read_exactly(application, len(wanted)) == wanted
        assert await read_some(application) == b""
    assert not list(short_tmp.iterdir())


async def test_a_shell_runs_if_it_is_asked_for() -> None:
    async with accepted(ProcessEndpoint("sh -c 'echo $((6 * 7)) | cat'")) as application:
        assert await read_exactly(application, 3) == b"42\n"


async def test_the_end_of_our_sending_is_its_end_of_file() -> None:
    async with accepted(ProcessEndpoint("sh -c 'cat; echo end'")) as application:
        await write(application, b"up ")
        application.stream.end()
        assert await read_exactly(application, 7) == b"up end\n"
        assert await read_some(application) == b""


async def test_it_gets_end_of_file_when_it_is_let_go_and_may_take_its_time(
    short_tmp: Path,
) -> None:
    script = f"cat >/dev/null; sleep 0.1; echo finished > {short_tmp}/left"
    async with accepted(ProcessEndpoint(f"sh -c '{script}'")):
        pass
    assert (short_tmp / "left").read_text() == "finished\n"


async def test_more_than_a_pipe_holds_goes_through_it() -> None:
    data = os.urandom(4 * 1024 * 1024)
    async with accepted(ProcessEndpoint("cat")) as application, anyio.create_task_group() as tasks:
        tasks.start_soon(write, application, data)
        assert await read_exactly(application, len(data)) == data


@pytest.mark.parametrize("status", [1, 3, 255])
async def test_an_exit_status_other_than_0_is_told(status: int) -> None:
    with pytest.raises(ApplicationError, match=f"exec=sh .*: it exited with status {status}$"):
        async with accepted(ProcessEndpoint(f"sh -c 'exit {status}'")) as application:
            assert await read_some(application) == b""


async def test_a_signal_that_was_not_ours_is_told() -> None:
    with pytest.raises(ApplicationError, match="it was killed by SIGSEGV"):
        async with accepted(ProcessEndpoint("sh -c 'kill -SEGV $$'")) as application:
            assert await read_some(application) == b""


async def test_a_real_time_signal_is_told_like_any_other() -> None:
    with pytest.raises(ApplicationError, match="it was killed by"):
        async with accepted(ProcessEndpoint("sh -c 'kill -40 $$'")) as application:
            assert await read_some(application) == b""


async def test_one_that_does_not_heed_its_end_of_file_is_terminated_without_an_error(
    monkeypatch: pytest.MonkeyPatch, short_tmp: Path
) -> None:
    monkeypatch.setattr(process, "EXIT_TIMEOUT", 1.0)
    left = short_tmp / "left"
    script = f"trap 'echo TERM > {left}; exit' TERM; echo ready; while :; do sleep 0.01; done"
    async with accepted(ProcessEndpoint(f'sh -c "{script}"')) as application:
        assert await read_exactly(application, 6) == b"ready\n"
    assert left.read_text() == "TERM\n"


async def test_one_that_ignores_even_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "EXIT_TIMEOUT", 0.1)
    script = "trap '' TERM; echo $$; while :; do sleep 0.01; done"
    async with accepted(ProcessEndpoint(f'sh -c "{script}"')) as application:
        pid = int(await read_some(application))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_its_children_are_ended_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "EXIT_TIMEOUT", 0.1)
    async with accepted(ProcessEndpoint("sh -c 'sleep 1000 & echo $!; wait'")) as application:
        pid = int(await read_some(application))
    await sleep_until(lambda: not alive(pid), "the child has ended")


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_letting_go_is_not_cut_short_when_cancelled(short_tmp: Path) -> None:
    script = f"cat >/dev/null; sleep 0.1; echo finished > {short_tmp}/left"
    with anyio.CancelScope() as scope:
        async with accepted(ProcessEndpoint(f"sh -c '{script}'")):
            scope.cancel()
    assert (short_tmp / "left").read_text() == "finished\n"


async def test_ctrl_c_is_not_for_it() -> None:
    """It has a session of its own: it gets end of file when we end."""
    async with accepted(ProcessEndpoint("sh -c 'echo $$; cat'")) as application:
        pid = int(await read_some(application))
        assert os.getsid(pid) == pid != os.getsid(0)


SECRETS = {
    "SPICEBRIDGE_PASSWORD": "secret",
    "SPICE_PROXY": "http://user:secret@proxy:3128",
    "NOTIFY_SOCKET": "/run/notify",
    "WATCHDOG_USEC": "1000000",
    "WATCHDOG_PID": "1",
    "LISTEN_FDS": "1",
    "LISTEN_PID": "1",
    "LISTEN_FDNAMES": "console",
}
"""What is secret, and what a service manager says to us alone."""


async def test_no_secret_and_nothing_that_is_for_us_is_in_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SPICEBRIDGE_URI", "spice://h:1")
    lines = (await said_by("env")).splitlines()
    assert not {line.partition(b"=")[0].decode() for line in lines} & set(SECRETS)
    assert b"SPICEBRIDGE_URI=spice://h:1" in lines
    assert b"PATH=" + os.environb[b"PATH"] in lines


async def said_by(command: str) -> bytes:
    async with accepted(ProcessEndpoint(command)) as application:
        text = b""
        while piece := await read_some(application):
            text += piece
    return text


async def test_it_inherits_none_of_our_descriptors() -> None:
    """Not even those that we have inherited ourselves."""
    secret, other = os.pipe()
    os.set_inheritable(secret, True)
    try:
        lines = (await said_by("ls -l /proc/self/fd")).splitlines()
    finally:
        os.close(secret)
        os.close(other)
    numbers = {line.split()[8] for line in lines if b"->" in line}
    assert numbers <= {b"0", b"1", b"2", b"3"}  # 3 is the folder that ls reads


async def test_signals_are_as_programs_expect() -> None:
    """Python ignores SIGPIPE and SIGXFSZ; a program that goes on writing is to end."""
    status = dict(
        line.split(b":\t") for line in (await said_by("cat /proc/self/status")).splitlines()
    )
    assert int(status[b"SigBlk"], 16) == 0
    ignored = int(status[b"SigIgn"], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        assert not ignored & 1 << number - 1, number.name


async def test_its_descriptors_block_as_programs_expect() -> None:
    code = "import os; print(os.get_blocking(0), os.get_blocking(1))"
    command = f'{sys.executable} -c "{code}"'
    async with accepted(ProcessEndpoint(command)) as application:
        assert await read_exactly(application, 10) == b"True True\n"


MISSING = {
    "no-such-program": ("spicebridge-no-such -x", "there is no program 'spicebridge-no-such'"),
    "no-such-path": ("/nonexistent/program", "there is no program '/nonexistent/program'"),
    "a-folder": ("/tmp", "there is no program '/tmp'"),
    "blank": ("  ", "exec= names no program"),
    "quotes": ("sh -c 'x", "No closing quotation"),
}


@pytest.mark.parametrize(("command", "says"), MISSING.values(), ids=[*MISSING])
async def test_a_program_that_cannot_be_started_is_told_early(command: str, says: str) -> None:
    with pytest.raises(EndpointError, match=says):
        await ProcessEndpoint(command).open()


async def test_one_that_turns_out_to_be_no_program_leaves_no_descriptor(short_tmp: Path) -> None:
    script = short_tmp / "script"
    script.write_text("no interpreter is named here")
    script.chmod(0o755)
    async with ProcessEndpoint("true") as warm:  # the event loop opens what it needs for children
        await (await warm.accept()).aclose()
    before = open_fds()
    async with ProcessEndpoint(str(script)) as endpoint:
        with pytest.raises(EndpointError, match="Exec format error"):
            await endpoint.accept()
    assert open_fds() == before


async def test_no_descriptor_is_left_open_and_no_child_unreaped() -> None:
    async with ProcessEndpoint("cat") as endpoint:
        await (await endpoint.accept()).aclose()
        before = open_fds()
        for _ in range(3):
            application = await endpoint.accept()
            assert open_fds() > before
            await application.aclose()
        assert open_fds() == before
    with anyio.fail_after(PATIENCE):
        await sleep_until(lambda: not zombies(), "no child is left")


def zombies() -> list[int]:
    """Our children that have ended and were not waited for."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] == "Z" and int(fields[1]) == os.getpid():
                found.append(int(entry.name))
    return found


async def test_a_program_that_no_longer_reads_is_no_trouble() -> None:
    """SIGPIPE is for programs; here it is an error of the write."""
    async with accepted(ProcessEndpoint("true")) as application:
        assert await read_some(application) == b""
        await sleep_until(application.stream.hung_up, "it has gone")
        with pytest.raises(BrokenPipeError):
            await write(application, b"x")
        assert application.stream.hung_up()
        assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
