"""The units of spicebridge(1), and socket activation, against systemd's own tools."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.tools import connect, read_exactly, until
from tests.conftest import EXECUTABLE, PATIENCE, Spicebridge
from tests.peers.listening import ListeningProcess
from tests.peers.processes import Process
from tests.test_manpage import _plain, _section

pytestmark = pytest.mark.real_peer

Start = Callable[..., Spicebridge]


def _units() -> dict[str, str]:
    """The units of the page by their names."""
    text = _plain("\n".join(_section("SYSTEMD")))
    shown = re.findall(r"^\.Pa (\S+) :\n\.Bd [^\n]*\n(.*?)^\.Ed$", text, re.DOTALL | re.MULTILINE)
    return {Path(path).name: unit for path, unit in shown}


@pytest.mark.parametrize("manager", ["system", "user"])
def test_the_units_of_the_manual_are_right(tmp_path: Path, manager: str) -> None:
    units = {
        name: text.replace("/usr/bin/spicebridge", str(EXECUTABLE))
        for name, text in _units().items()
        if ("default.target" in text) == (manager == "user")
    }
    kinds = {"system": [".service", ".socket"], "user": [".service"]}[manager]
    assert sorted(Path(name).suffix for name in units) == kinds
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", f"--{manager}", "--man=no", "verify", *(tmp_path / n for n in units)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "info"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def echoing(spicebridge: Start, short_tmp: Path) -> str:
    """URI of a server whose channels 128 and 129 echo."""
    specs = [f"channelid={number},exec=cat" for number in (128, 129)]
    listen = ("--listen", f"unix:{short_tmp}/spice")
    spicebridge("serve", *listen, *[f"--custom-channel={spec}" for spec in specs])
    return f"spice+unix://{short_tmp}/spice"


def activate(*args: str) -> list[str]:
    """The command line of systemd-socket-activate, which passes little of the environment on."""
    names = [name for name in os.environ if name.startswith(("COVERAGE", "XDG", "PYTHON"))]
    return ["systemd-socket-activate", *(f"-E{name}" for name in names), *args]


def test_applications_connect_to_the_sockets_of_systemd(echoing: str, short_tmp: Path) -> None:
    path = short_tmp / "console"
    abstract = f"@{short_tmp}/abstract"
    args = [
        *("-l", str(path), "-l", abstract, "--fdname=console:other", str(EXECUTABLE), echoing),
        *("--log-format=json", "--custom-channel=fd=console,channelid=128"),
        "--custom-channel=fd=other,channelid=129",
    ]
    with Process(activate(*args)) as process:
        until("both listen", lambda: process.stderr().count("Listening on ") == 2)
        with connect(path) as app, socket.socket(socket.AF_UNIX) as other:
            app.sendall(b"hello")  # nobody runs yet
            assert read_exactly(app, 5) == b"hello"
            other.settimeout(PATIENCE)
            other.connect(f"\0{abstract[1:]}")
            other.sendall(b"there")
            assert read_exactly(other, 5) == b"there"
        lines = [json.loads(line) for line in process.stderr().splitlines() if line[0] == "{"]
        (ready,) = (line for line in lines if line["event"] == "ready")
        assert ready["ends"] == [f"fd=console (unix:{path})", f"fd=other (unix:{abstract})"]
        process.popen.terminate()
        assert process.popen.wait(PATIENCE) == 0
    assert path.is_socket()  # it belongs to systemd


def test_a_tcp_port_of_systemd_by_its_number(echoing: str) -> None:
    rest = [str(EXECUTABLE), echoing, "--custom-channel=fd=3,channelid=128"]
    with ListeningProcess(lambda port: activate("-l", f"127.0.0.1:{port}", *rest)) as process:
        with socket.create_connection(("127.0.0.1", process.port), timeout=PATIENCE) as app:
            app.sendall(b"hello")
            assert read_exactly(app, 5) == b"hello"
        assert f"channelid=128 at fd=3 (127.0.0.1:{process.port})" in process.stderr()
        process.popen.terminate()
        assert process.popen.wait(PATIENCE) == 0
