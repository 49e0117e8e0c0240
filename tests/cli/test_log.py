"""What goes to stderr: lines for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge import BridgeStatus
from spicebridge.cli.log import LogFormat, set_up_logging
from spicebridge.protocol.constants import Msg
from tests.cli.conftest import Offered
from tests.cli.fake_server import fake_server, message, spice
from tests.cli.tools import connect, events, run, until, wait_event
from tests.conftest import Spicebridge

Start = Callable[..., Spicebridge]

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n12:00:00 ERROR x: forged\x9b1m\u202e"


def logged(log_format: LogFormat, text: str, *, level: int = logging.INFO) -> str:
    """What stands on stderr after an event with `text`."""
    lines: list[str] = []
    set_up_logging(lines.append, log_format, logging.DEBUG)
    BridgeStatus("port=p").event("linked", text, level, channel="port:0")
    return "".join(f"{line}\n" for line in lines)


def test_a_line_has_time_level_bridge_and_text() -> None:
    line = logged(LogFormat.TEXT, "port:0 linked")
    time, rest = line.split(" ", 1)
    datetime.strptime(time, "%H:%M:%S")
    assert rest == "INFO port=p: port:0 linked\n"


@given(st.text())
def test_whatever_a_peer_says_is_one_line_that_a_terminal_only_shows(text: str) -> None:
    line = logged(LogFormat.TEXT, f"the server says: {text}")
    assert line.endswith("\n")
    assert line[:-1].isprintable()


def test_markup_in_what_a_peer_says_is_shown_as_it_is() -> None:
    text = "[bold]x[/bold] :smile: [link=http://x]y[/link]"
    assert logged(LogFormat.TEXT, text).endswith(f"port=p: {text}\n")


def test_a_long_line_is_not_cut_nor_folded() -> None:
    assert logged(LogFormat.TEXT, "x " * 1000).count("\n") == 1


@given(st.text())
def test_a_json_line_is_one_object_with_everything_in_it(text: str) -> None:
    line = logged(LogFormat.JSON, text, level=logging.WARNING)
    assert line.count("\n") == 1
    assert line.isascii()
    record = json.loads(line)
    assert datetime.fromisoformat(record.pop("time")).tzinfo is not None
    assert record == {
        "level": "warning",
        "event": "linked",
        "bridge": "port=p",
        "message": text,
        "up": 0,
        "down": 0,
        "channel": "port:0",
    }


def test_json_on_stderr_tells_the_whole_life_of_a_bridge(
    spicebridge: Start, offered: Offered, short_tmp: Path
) -> None:
    spec = f"unixsocket={short_tmp}/s,channelid=128"
    bridge = spicebridge(offered.uri, "--log-format", "json", "--custom-channel", spec)
    with connect(short_tmp / "s"):
        wait_event(bridge, "linked", bridge="channelid=128")
    gone = wait_event(bridge, "app-gone")
    wait_event(bridge, "unlinked")
    assert bridge.stop() == 0
    told = events(bridge)
    for each in told:
        assert {"time", "level", "event", "bridge", "message"} <= each.keys()
    ours = [each["event"] for each in told if each["event"] != "log"]
    assert ours[:3] == ["ready", "app-connected", "linked"]
    assert set(ours[3:]) == {"unlinked", "app-gone"}
    ready = told[0]
    assert ready["address"] == offered.uri.replace("spice+unix://", "unix:")
    assert ready["bridges"] == ["channelid=128"]
    assert gone["app"].startswith("pid ")
    assert {"up", "down", "undelivered"} <= gone.keys()


def test_an_error_is_json_too_with_its_exit_code() -> None:
    finished = run("--log-format", "json", "--custom-channel", "stdio,channelid=1")
    record = json.loads(finished.stderr)
    assert record["event"] == record["level"] == "error"
    assert record["exit_code"] == finished.code == 2
    assert "channelid=1" in record["message"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_server_says_cannot_forge_or_hide_a_line(
    spicebridge: Start, short_tmp: Path, log_format: str
) -> None:
    text = HOSTILE.encode()
    notify = bytes(20) + len(text).to_bytes(4, "little") + text + b"\0"
    with fake_server(short_tmp / "spice", spice(main=message(Msg.NOTIFY, notify))) as uri:
        spec = f"unixsocket={short_tmp}/s,channelid=128"
        bridge = spicebridge(uri, "--log-format", log_format, "--custom-channel", spec)
        until("it was logged", lambda: "the server says" in bridge.stderr())
        assert bridge.stop() == 0
    assert "\x1b" not in bridge.stderr()
    assert "\u202e" not in bridge.stderr()
    (said,) = [line for line in bridge.stderr().split("\n") if "the server says" in line]
    assert "forged" in said
