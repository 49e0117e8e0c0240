"""``exec=``: a program for each stream, as inetd does."""

from __future__ import annotations

import hashlib
import random
import shlex
from pathlib import Path

import pytest

from spicebridge import ProcessEndpoint
from spicebridge.endpoints import process
from tests.bridge.mux_tools import alive, stage
from tests.bridge.tools import EventLog, until
from tests.protocol.frames import frame


def program(script: str) -> ProcessEndpoint:
    return ProcessEndpoint(f"sh -c {shlex.quote(script)}")


async def test_each_stream_has_a_process_of_its_own(short_tmp: Path, log: EventLog) -> None:
    async with stage(short_tmp, end=program("echo $$; exec cat")) as on:
        pids = set()
        for number in range(5):
            await on.guest.send(frame(number, b"hello %d" % number))
        for number in range(5):
            await until(lambda: on.guest.data(number).endswith(b"hello %d" % number), "its echo")  # noqa: B023
            pids.add(int(on.guest.data(number).split(b"\n")[0]))
        assert len(pids) == 5
        assert set(alive(pids)) == pids
        for number in range(5):
            await on.guest.send(frame(number))
            await on.guest.until_end(number)
        await log.wait("stream-end", count=5)
        assert not set(alive(pids))  # none is a zombie, either
    assert not log.find("error")


async def test_size_0_is_the_end_of_its_input(short_tmp: Path) -> None:
    data = random.Random(1).randbytes(700_000)
    async with stage(short_tmp, end=program("sleep 0.1; sha256sum | cut -c1-64; wc -c")) as on:
        await on.guest.send(
            b"".join(frame(1, data[at : at + 50_000]) for at in range(0, len(data), 50_000))
        )
        await on.guest.send(frame(1))
        assert await on.guest.until_end(1) == (hashlib.sha256(data).hexdigest().encode() + b"\n0\n")


async def test_the_end_of_its_output_is_size_0_while_it_still_reads(
    short_tmp: Path, log: EventLog
) -> None:
    script = f"echo done; exec >&-; cat > {short_tmp}/got"
    async with stage(short_tmp, end=program(script)) as on:
        await on.guest.send(frame(1, b"first "))
        assert await on.guest.until_end(1) == b"done\n"
        await on.guest.send(frame(1, b"second") + frame(1))
        await log.wait("stream-end", id=1)
        assert (short_tmp / "got").read_bytes() == b"first second"


async def test_a_program_that_ends_by_itself_ends_its_stream(
    short_tmp: Path, log: EventLog
) -> None:
    async with stage(short_tmp, end=program("echo bye")) as on:
        await on.guest.send(frame(1, b"x"))
        assert await on.guest.until_end(1) == b"bye\n"
        await log.wait("stream-end", id=1)
    assert not log.find("error")


async def test_a_program_that_fails_is_told_and_ends_its_stream_alone(
    short_tmp: Path, log: EventLog
) -> None:
    script = 'read word; case $word in fail) exit 3;; die) kill -9 $$;; esac; echo "$word"; cat'
    async with stage(short_tmp, end=program(script)) as on:
        await on.guest.send(frame(1, b"stay\n"))
        await on.guest.until_data(1, 5)
        await on.guest.send(frame(2, b"fail\n") + frame(3, b"die\n"))
        assert await on.guest.until_end(2) == b""
        assert await on.guest.until_end(3) == b""
        await log.wait("error", count=2)
        messages = [each["message"] for each in log.find("error")]
        assert any("exited with status 3" in message for message in messages)
        assert any("killed by SIGKILL" in message for message in messages)
        assert all("\n" not in message for message in messages)
        await on.guest.send(frame(1, b"still here"))
        assert await on.guest.until_data(1, 15) == b"stay\nstill here"
        await on.running.stop()
        assert on.running.error is None


async def test_a_program_that_has_gone_missing_refuses_its_stream_alone(
    short_tmp: Path, log: EventLog
) -> None:
    path = short_tmp / "program"
    path.write_text("#!/bin/sh\nexec cat\n")
    path.chmod(0o755)
    async with stage(short_tmp, end=ProcessEndpoint(str(path))) as on:
        await on.guest.send(frame(1, b"hello"))
        await on.guest.until_data(1, 5)
        path.unlink()
        await on.guest.send(frame(2, b"hello"))
        await on.guest.until_end(2)
        assert "No such file" in (await log.wait("stream-refused", id=2))["message"]
        await on.guest.send(frame(1, b"again"))
        assert await on.guest.until_data(1, 10) == b"helloagain"


async def test_programs_are_ended_with_the_port_and_with_us(short_tmp: Path, log: EventLog) -> None:
    async with stage(short_tmp, end=program("echo $$; exec cat")) as on:
        pids = set()
        for number in range(4):
            await on.guest.send(frame(number, b"x"))
            await until(lambda: b"\n" in on.guest.data(number), "its pid")  # noqa: B023
            pids.add(int(on.guest.data(number).split(b"\n")[0]))
            if number == 1:
                await on.guest.tell_closed()
                await until(lambda: not set(alive(pids)), "both have ended")
        await on.running.stop()
        assert not set(alive(pids))
    assert not log.find("error")


async def test_a_program_that_does_not_want_to_end_is_made_to(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EXIT_TIMEOUT", 0.2)
    stubborn = "trap '' TERM; echo $$; while :; do sleep 1; done"
    async with stage(short_tmp, end=program(stubborn)) as on:
        await on.guest.send(frame(1, b"x"))
        await until(lambda: b"\n" in on.guest.data(1), "its pid")
        pid = int(on.guest.data(1))
        on.running.stopping.set()
        await until(lambda: not set(alive([pid])), "it has been ended")
        await on.running.wait()
