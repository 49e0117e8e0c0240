"""Fixtures for the tests of the executable."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import EXECUTABLE

PASSWORD = "correct horse"


@pytest.fixture(autouse=True)
def _untouched_log() -> Iterator[None]:
    """Leaves the loggers as they were, whatever a command run in this process has set up."""
    log = logging.getLogger("spicebridge")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@dataclass(frozen=True)
class Offered:
    """A ``spicebridge serve`` that many tests share: nobody plays the guest of its channels.

    It has the channels 128:0, 128:5, and the ports alpha.one, alpha.two and solo.
    """

    uri: str


def _serve(folder: Path, *args: str) -> tuple[subprocess.Popen[bytes], str]:
    reader, writer = os.pipe()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(EXECUTABLE, "serve", "--listen", f"unix:{folder}/spice"),
                *("--ready-fd", str(writer), *args),
            ],
            stdin=subprocess.DEVNULL,
            stderr=log,
            pass_fds=(writer,),
        )
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"ready\n", (folder / "log").read_text()
    return process, f"spice+unix://{folder}/spice"


@pytest.fixture(scope="session")
def offered() -> Iterator[Offered]:
    """A shared server without a password."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        folder = Path(name)
        specs = ["channelid=128", "channelid=128,instance=5"]
        specs += [f"port={port}" for port in ("alpha.one", "alpha.two", "solo")]
        args = [
            argument
            for number, spec in enumerate(specs)
            for argument in ("--custom-channel", f"{spec},unixsocket={folder}/guest-{number}")
        ]
        process, uri = _serve(folder, *args)
        try:
            yield Offered(uri)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def locked() -> Iterator[Offered]:
    """A shared server with a password and a channel 128."""
    with tempfile.TemporaryDirectory(prefix="sb-") as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD + "\n")
        process, uri = _serve(
            folder,
            *("--password-file", f"{folder}/password"),
            *("--custom-channel", f"channelid=128,unixsocket={folder}/guest"),
        )
        try:
            yield Offered(uri)
        finally:
            process.kill()
            process.wait()
