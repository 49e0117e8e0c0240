"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.peers.processes import PATIENCE as PATIENCE

# a machine may be busy, and no test asserts a timing
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

EXECUTABLE = Path(sys.executable).with_name("spicebridge")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs on both."""
    backend: str = request.param
    return backend


@pytest.fixture(scope="session", autouse=True)
def _own_bridges() -> Iterator[None]:
    """`spicebridge list` meets no bridges but those of these tests."""
    with tempfile.TemporaryDirectory(prefix="sb-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        yield


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A folder whose path is short enough for Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="sb-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def nothing_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user who runs the tests trusts, or goes through, is not ours."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SPICE_PROXY", "SPICEBRIDGE_URI", "SPICEBRIDGE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def peers() -> Iterator[ExitStack]:
    """What keeps the peers of a test running until it has ended."""
    with ExitStack() as stack:
        yield stack


@dataclass
class Spicebridge:
    """A running `spicebridge` executable.

    Attributes:
        process: it; its stderr goes to `log`.
        log: file with what it has logged.
    """

    process: subprocess.Popen[bytes]
    log: Path

    def stderr(self) -> str:
        """What it has logged by now."""
        return self.log.read_text(encoding="utf-8")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal and waits; returns the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Waits until it has ended; returns the exit code."""
        return self.process.wait(PATIENCE)


@pytest.fixture
def spicebridge(short_tmp: Path) -> Iterator[Callable[..., Spicebridge]]:
    """Starts the installed executable and waits until it is ready.

    Arguments are those of the command line; stdin and stdout may be given as to `Popen`, and
    ``ready=False`` does not wait. What still runs at the end of the test is killed.
    """
    started: list[Spicebridge] = []

    def start(
        *args: str,
        ready: bool = True,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> Spicebridge:
        log = short_tmp / f"spicebridge-{len(started)}.log"
        reader, writer = os.pipe()
        try:
            with log.open("wb") as stderr:
                process = subprocess.Popen(
                    [EXECUTABLE, *args, *(["--ready-fd", str(writer)] if ready else [])],
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    env={**os.environ, **(env or {})},
                    pass_fds=(*pass_fds, writer) if ready else pass_fds,
                )
        finally:
            os.close(writer)
        running = Spicebridge(process, log)
        started.append(running)
        with os.fdopen(reader, "rb") as pipe:
            if ready and not (select.select([pipe], [], [], PATIENCE)[0] and pipe.read()):
                pytest.fail(f"spicebridge {args} is not ready: {running.stderr()}")
        return running

    yield start
    for running in started:
        running.process.kill()
        running.process.wait()
        for pipe in (running.process.stdin, running.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that was to meet a real peer and did not has failed."""
    report = yield
    if report.skipped and item.get_closest_marker("real_peer"):
        report.outcome = "failed"
        report.longrepr = f"a real-peer test was skipped: {report.longrepr}"
    return report
