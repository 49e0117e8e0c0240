"""The command lines that are read without Typer mean what they mean to Typer."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.cli import commands
from spicebridge.cli.bridging import RECONNECT_MAX, BridgeOptions
from spicebridge.cli.log import LogFormat
from spicebridge.cli.plain import _OPTIONS, _REACH_OPTIONS, read_plain
from spicebridge.cli.target import ReachOptions

SPEC = "unixsocket=/tmp/s,port=p"
MINIMAL = ["--custom-channel", SPEC]


class _TakenError(Exception):
    def __init__(self, options: BridgeOptions) -> None:
        self.options = options


def as_typer_has_it(words: list[str]) -> BridgeOptions | None:
    """What a bridge would be told by Typer; None where Typer refuses the line."""

    def take(options: BridgeOptions) -> int:
        raise _TakenError(options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "bridge", take)
        try:
            commands.app(words, prog_name="spicebridge", standalone_mode=False)
        except _TakenError as taken:
            return taken.options
        except typer.TyperException:
            return None
    return None


FULL = BridgeOptions(
    uri="spice+tls://host:5901",
    custom_channel=[SPEC, "stdio,channelid=128"],
    share="/srv/a folder",
    password_file=Path("/run/password"),
    password_command="pass show vm",
    reach=ReachOptions(
        ca_file=Path("ca.pem"),
        host_subject="C=DE,CN=vm",
        pinned_key="sha256//AAAA=",
        tls_ciphers="HIGH",
        insecure_tls=True,
        secure_channels="main,port",
        proxy="http://proxy:3128",
        sasl_mechanism="PLAIN",
    ),
    connect_timeout=2.5,
    reconnect=7.5,
    takeover_limit=5,
    idle_timeout=90.5,
    ready_fd=3,
    log_format=LogFormat.JSON,
    verbose=2,
    quiet=True,
)


def words_of(options: BridgeOptions, *, joined: bool) -> list[str]:
    """A command line that says all of it."""
    values = {
        **{name: getattr(options, _attribute(name)) for name in _OPTIONS},
        **{name: getattr(options.reach, _attribute(name)) for name in _REACH_OPTIONS},
    }
    pairs = [("--custom-channel", spec) for spec in options.custom_channel]
    pairs += [(name, str(value)) for name, value in values.items()]
    apart = [
        word
        for name, value in pairs
        for word in ([f"{name}={value}"] if name == "--reconnect" else [name, value])
    ]
    words = [f"{name}={value}" for name, value in pairs] if joined else apart
    return ["-v", *words, str(options.uri), "--insecure-tls", "--verbose", "-q"]


def _attribute(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


@pytest.mark.parametrize("joined", [False, True], ids=["blank", "equals"])
def test_every_option_is_read_as_typer_reads_it(joined: bool) -> None:
    words = words_of(FULL, joined=joined)
    assert read_plain(words) == as_typer_has_it(words) == FULL


def test_every_option_of_typer_is_known() -> None:
    """Not one is forgotten here, or a line that has it starts slowly."""
    group = typer.main.get_command(commands.app)
    options = getattr(group, "commands")["bridge"].params  # noqa: B009 - mypy cannot know
    known = {"uri", "custom_channel", "insecure_tls", "verbose", "quiet"}
    known |= {_attribute(name) for name in (*_OPTIONS, *_REACH_OPTIONS)}
    assert known == {option.name for option in options}


@pytest.mark.parametrize(
    "words",
    [
        MINIMAL,
        [f"--custom-channel={SPEC}", "host.vv"],
        ["spice://h:1", *MINIMAL],
        [*MINIMAL, "spice+unix:///run/s p a c e"],
        [*MINIMAL, *MINIMAL],
        [*MINIMAL, "-q", "--quiet"],
        [*MINIMAL, "--password-file", "list"],
        [*MINIMAL, "--reconnect"],
        ["--reconnect", *MINIMAL, "spice://h:1"],
        [*MINIMAL, "--reconnect", "spice://h:1"],
        [*MINIMAL, "--reconnect=1"],
        [*MINIMAL, "--reconnect=1.5", "--takeover-limit", "0", "--idle-timeout=90"],
    ],
)
def test_a_plain_line_is_read(words: list[str]) -> None:
    options = read_plain(words)
    assert options is not None
    assert options == as_typer_has_it(words)


def test_reconnect_has_a_value_behind_an_equals_sign_only() -> None:
    bare = read_plain([*MINIMAL, "--reconnect"])
    assert bare is not None
    assert bare.reconnect == RECONNECT_MAX
    options = as_typer_has_it([*MINIMAL, "--reconnect", "5"])
    assert options is not None
    assert (options.reconnect, options.uri) == (RECONNECT_MAX, "5")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["spice://h:1"],
        ["--help"],
        ["--version"],
        ["list", "spice://h:1"],
        ["serve", *MINIMAL],
        [*MINIMAL, "--help"],
        [*MINIMAL, "demo"],
        [*MINIMAL, "-qv"],
        [*MINIMAL, "-"],
        [*MINIMAL, "--", "spice://h:1"],
        [*MINIMAL, "spice://h:1", "spice://h:2"],
        [*MINIMAL, "--quiet=yes"],
        [*MINIMAL, "--nothing", "x"],
        [*MINIMAL, "--nothing=x"],
        [*MINIMAL, "--share"],
        [*MINIMAL, "--share="],
        [*MINIMAL, "--share", "-q"],
        [*MINIMAL, "--proxy", "http://a:1", "--proxy", "http://b:1"],
        [*MINIMAL, "--ready-fd", "0"],
        [*MINIMAL, "--ready-fd", "three"],
        [*MINIMAL, "--connect-timeout", "0"],
        [*MINIMAL, "--connect-timeout", "1e3"],
        [*MINIMAL, "--connect-timeout", "nan"],
        [*MINIMAL, "--log-format", "JSON"],
        [*MINIMAL, "--reconnect", "5"],
        [*MINIMAL, "--reconnect="],
        [*MINIMAL, "--reconnect=0.1"],
        [*MINIMAL, "--reconnect", "--reconnect=5"],
        [*MINIMAL, "--takeover-limit=-1"],
        [*MINIMAL, "--takeover-limit", "1.5"],
        [*MINIMAL, "--idle-timeout", "0"],
        ["--custom-channel", "", "spice://h:1"],
        ["--custom-channel", "unixsocket=/tmp/\udce4,port=p"],
    ],
)
def test_what_is_not_plain_is_left_to_typer(words: list[str]) -> None:
    assert read_plain(words) is None


WORDS = [
    *("--custom-channel", SPEC, f"--custom-channel={SPEC}", "spice://h:1", "host.vv", "list"),
    *("-q", "-v", "-vq", "--quiet", "--insecure-tls", "--", "-", "", "--share", "--share=/srv"),
    *("--ready-fd", "--ready-fd=3", "3", "03", "+3", "3.5", "--connect-timeout", "--log-format"),
    *("--reconnect", "--reconnect=5", "--reconnect=", "--takeover-limit", "--takeover-limit=0"),
    *("--idle-timeout", "--idle-timeout=90"),
    *("text", "JSON", "--proxy", "--proxy=a=b", "--password-file", "--nothing", "ws://h/\n"),
]


@given(st.lists(st.sampled_from(WORDS), max_size=7))
def test_no_line_means_one_thing_here_and_another_to_typer(words: list[str]) -> None:
    options = read_plain([*MINIMAL, *words])
    if options is not None:
        assert options == as_typer_has_it([*MINIMAL, *words])
