"""spicebridge(1) says what the code does: no more, no less."""

from __future__ import annotations

import ast
import base64
import re
import shlex
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any

import pytest
import trustme
import typer.main

from spicebridge import (
    CONNECT_TIMEOUT,
    DEFAULT_URI,
    FIRST_DELAY,
    TAKEOVER_LIMIT,
    USER_DEFINED_START,
    ApplicationError,
    ChannelType,
    EndpointError,
    SpicebridgeError,
    TakeoverError,
    parse_host_port,
    parse_proxy,
    parse_uri,
)
from spicebridge.bridge import retry, sessions
from spicebridge.bridge.supervisor import DRAIN_TIMEOUT
from spicebridge.channel import CLOSE_TIMEOUT
from spicebridge.channel.move import BURST, RATE
from spicebridge.cli import descriptors
from spicebridge.cli.answer import OutputClosedError
from spicebridge.cli.bridging import RECONNECT_MAX
from spicebridge.cli.commands import app
from spicebridge.cli.listing import Row
from spicebridge.cli.log import LogFormat
from spicebridge.cli.spec import BARE, CHOICES, ENDS, KEYS, parse_custom_channel
from spicebridge.cli.status import VARIABLE as RUNTIME_VARIABLE
from spicebridge.cli.target import ReachOptions, server_target
from spicebridge.client.session import BUSY_TIMEOUT, SILENCE
from spicebridge.endpoints.environment import PASSWORD_VARIABLE, PROXY_VARIABLE, URI_VARIABLE
from spicebridge.endpoints.process import EXIT_TIMEOUT
from spicebridge.endpoints.sockets import TCP_LINGER
from spicebridge.endpoints.stdio import STDIO_LINGER
from spicebridge.protocol.constants import MAX_PASSWORD_LENGTH
from spicebridge.protocol.sasl_choice import _REFUSED as REFUSED_MECHANISMS
from spicebridge.protocol.sasl_choice import MECHANISMS
from spicebridge.transport import uri
from spicebridge.transport.connection_file import _GROUP as VV_GROUP
from spicebridge.transport.connection_values import _IGNORED as VV_IGNORED
from spicebridge.transport.connection_values import _USED as VV_USED
from spicebridge.transport.keepalive import IDLE, INTERVAL, PROBES
from spicebridge.transport.proxy_address import _PORTS as PROXY_PORTS
from spicebridge.transport.subject import parse_subject
from spicebridge.transport.trust import TRUSTSTORE
from tests.conftest import PATIENCE

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "man" / "spicebridge.1"
SERVER = "THE SERVER"
SPECIFICATION = "THE --custom-channel SPECIFICATION"
SERVICE_MANAGER = (
    *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"),
    *("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"),
)


def _source() -> list[str]:
    return PAGE.read_text(encoding="utf-8").splitlines()


def _section(title: str) -> list[str]:
    """The lines of a section, as they are in the source."""
    lines = _source()
    begin = lines.index(f".Sh {title}") + 1
    ends = [index for index, line in enumerate(lines) if line.startswith(".Sh ")]
    return lines[begin : min((index for index in ends if index > begin), default=len(lines))]


def _subsection(section: str, title: str) -> list[str]:
    """The lines of a part of a section."""
    lines = _section(section)
    rest = lines[lines.index(f".Ss {title}") + 1 :]
    return list(takewhile(lambda line: not line.startswith(".Ss "), rest))


def _plain(text: str) -> str:
    """Text without the escapes of roff."""
    for escape, char in ((r"\-", "-"), (r"\(aq", "'"), (r"\&", ""), (r"\e", "\\")):
        text = text.replace(escape, char)
    assert not re.search(r"\\[(a-z]", text) or "\\n" in text, text
    return text


def _macro(line: str) -> list[str]:
    return _plain(line).split()


def _prose(title: str) -> str:
    """A section as a reader has it, in one line."""
    return _read(_section(title))


def _read(lines: list[str]) -> str:
    macros = r"^\.(?:\w+)(?: |$)"
    words = [re.sub(macros, "", line) for line in lines]
    inner = r"\b(?:Ar|Cm|Dv|Ev|Fl|Li|Ns|Pa|Pq|Ta) "
    return re.sub(r"\s+", " ", re.sub(inner, "", _plain(" ".join(words))))


def _items(title: str) -> dict[str, list[str]]:
    """The lines under each item of a section's list, by the second word of its .It."""
    items: dict[str, list[str]] = {}
    current: list[str] = []
    for line in _section(title):
        if line.startswith(".It "):
            current = items.setdefault(_macro(line)[2], [])
        elif line.startswith(".El"):
            current = []
        current.append(line)
    return items


def _commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return {**group.commands, "": group}


def _options() -> dict[str, set[str]]:
    """The options of each command, --help apart."""
    return {
        name: {
            option
            for parameter in command.params
            if parameter.param_type_name == "option"
            for option in parameter.opts
        }
        for name, command in _commands().items()
    }


def _errors(kind: type[SpicebridgeError] = SpicebridgeError) -> Iterator[type[SpicebridgeError]]:
    """The exceptions of errors.py; those derived from them elsewhere have their codes."""
    if kind.__module__ == "spicebridge.errors":
        yield kind
    for each in kind.__subclasses__():
        yield from _errors(each)


# The page itself


def test_mandoc_finds_nothing_to_say() -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "all", PAGE],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    # other manuals may or may not be installed here
    said = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if "referenced manual not found" not in line and "mandoc.db" not in line
    ]
    assert said == []


def test_it_has_the_sections_that_users_look_for() -> None:
    titles = [line.removeprefix(".Sh ") for line in _source() if line.startswith(".Sh ")]
    assert titles == [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        SERVER,
        SPECIFICATION,
        "STREAMS",
        "COMMANDS",
        "CLOSING AND SIGNALS",
        "RELIABILITY",
        "SYSTEMD",
        "LOG",
        "ENVIRONMENT",
        "FILES",
        "EXIT STATUS",
        "EXAMPLES",
        "SEE ALSO",
        "CAVEATS",
        "SECURITY CONSIDERATIONS",
    ]


# Options and commands


def _flags(lines: list[str]) -> set[str]:
    """The options that .Fl macros name; -qv are two."""
    flags: set[str] = set()
    for line in lines:
        if not line.startswith((".Fl ", ".It Fl ", ".Op Fl ")):
            continue
        words = _macro(line.removeprefix("."))
        for word in words[words.index("Fl") + 1 :]:
            if word in {"Ar", "Cm"}:
                break
            if word.startswith("-"):
                flags.add(f"-{word}")
            elif word.isalpha() and word.islower():
                flags.update(f"-{letter}" for letter in word)
    return flags


def test_the_options_described_are_those_of_the_code() -> None:
    everything = set().union(*_options().values(), {"--help"})
    assert _flags([line for line in _section("OPTIONS") if line.startswith(".It")]) == everything
    assert _flags(_source()) == everything


@pytest.mark.parametrize("name", ["bridge", "list", "serve", "demo"])
def test_the_synopsis_of_each_command_has_its_options(name: str) -> None:
    text = "\n".join(_section("SYNOPSIS"))
    forms = dict(zip(["bridge", "list", "serve", "demo"], text.split(".Nm\n")[1:5], strict=True))
    assert name == "bridge" or forms[name].startswith(f".Cm {name}\n")
    short_for = {"--verbose", "--quiet"}
    assert _flags(forms[name].splitlines()) == _options()[name] - short_for


def test_the_commands_described_are_those_of_the_code() -> None:
    visible = {name for name, command in _commands().items() if name and not command.hidden}
    assert set(_items("COMMANDS")) == visible


def test_every_log_format_is_described() -> None:
    lines = _items("OPTIONS")["-log-format"]
    formats = {word for line in lines if line.startswith(".Cm") for word in _macro(line)[1:2]}
    assert formats == {each.value for each in LogFormat}


def test_defaults_and_limits_are_those_of_the_code() -> None:
    assert DEFAULT_URI in _prose("DESCRIPTION")
    (listen,) = (each for each in _commands()["serve"].params if each.name == "listen")
    assert f"The default is {listen.default}." in _prose("OPTIONS")
    assert STDIO_LINGER == TCP_LINGER
    assert f"The default is {STDIO_LINGER:g} for stdio and tcp" in _prose(SPECIFICATION)
    closing = _prose("CLOSING AND SIGNALS")
    assert f"for {CLOSE_TIMEOUT:g} seconds at most" in closing
    assert f"has not exited after {EXIT_TIMEOUT:g} seconds" in closing
    assert f"After {DRAIN_TIMEOUT:g} seconds, what has not arrived is given up" in closing
    options = _prose("OPTIONS")
    assert f"The default of MAX is {RECONNECT_MAX:g}, and the least {FIRST_DELAY:g}." in options
    assert f"The default is {TAKEOVER_LIMIT}; 0 is for never." in options
    caveats = _prose("CAVEATS")
    assert f"tried again for {BUSY_TIMEOUT:g} seconds" in caveats
    assert f"may take {CONNECT_TIMEOUT:g} seconds" in caveats


def test_the_rules_of_trying_again_are_those_of_the_code() -> None:
    text = _prose("RELIABILITY")
    assert f"The first try comes after {retry.FIRST_DELAY:g} seconds" in text
    assert f"after a session that has stayed for {retry.STEADY:g} seconds" in text
    assert f"within {retry.SOON:g} seconds, and the server was there at the first try" in text
    assert f"has said nothing for {SILENCE:g} seconds, a warning says so" in text
    assert f"carries {BURST:g} messages of data towards the guest at once and then {RATE:g}" in text
    assert f"ends with the exit status {TakeoverError.exit_code}." in text
    assert IDLE + INTERVAL * PROBES == 120
    assert "found out after two minutes" in text

    rules = re.findall(
        r"\.It [^(]+\(([\d, ]+)\)\n(.*?)(?=\.It|\.El)",
        "\n".join(_section("RELIABILITY")),
        re.DOTALL,
    )
    rule = {int(code): told for codes, told in rules for code in codes.split(", ")}
    of_local_ends = {EndpointError.exit_code, ApplicationError.exit_code}
    ours = {SpicebridgeError.exit_code, TakeoverError.exit_code}
    assert set(rule) == {each.exit_code for each in _errors()} - of_local_ends - ours
    for final in sessions._FINAL:
        assert "is never tried again" in rule[final.exit_code]
    for away in sessions._AWAY:
        assert rule[away.exit_code].startswith("is tried again")


# The server


def _terms(lines: list[str]) -> list[str]:
    """The words of every .It Li, in their order."""
    return [
        word
        for line in lines
        if line.startswith(".It Li ")
        for word in _macro(line.removeprefix(".It Li "))
        if word != ","
    ]


def test_the_schemes_described_are_those_of_the_code() -> None:
    terms = " ".join(_terms(_subsection(SERVER, "Addresses")))
    schemes = re.findall(r"([a-z+]+)://", terms)
    assert set(schemes) == set(re.findall(r"``([a-z+]+)://", uri.__doc__ or ""))
    for scheme in schemes:
        place = "/run/s" if scheme == "spice+unix" else "vmhost:5900"
        parse_uri(f"{scheme}://{place}")
    assert set(re.findall(r"([a-z-]+)=", _read(_subsection(SERVER, "Addresses")))) == set(uri._KEYS)
    told = "without TLS, at port {ws} by default, or with it, at {wss}.".format_map(uri._WEB_PORTS)
    assert told in _read(_subsection(SERVER, "Addresses"))


def test_the_keys_of_a_connection_file_are_those_of_the_code() -> None:
    lines = _subsection(SERVER, "Connection files")
    assert set(_terms(lines)) == VV_USED
    begin = next(index for index, line in enumerate(lines) if line.endswith(" are ignored:"))
    ignored = takewhile(lambda line: line.startswith(".Li "), lines[begin + 1 :])
    words = {word for line in ignored for word in _macro(line)[1:]} - {",", "."}
    assert words == VV_IGNORED
    assert f".Li [{VV_GROUP}]" in lines


def test_the_mechanisms_of_sasl_are_those_of_the_code_in_their_order() -> None:
    lines = _subsection(SERVER, "Logging in")
    assert _terms(lines) == list(MECHANISMS)
    refused = next(index for index, line in enumerate(lines) if line.startswith("Others, such as"))
    named = {_macro(line)[1] for line in lines[refused + 1 : refused + 4] if line.startswith(".Li")}
    assert named < set(REFUSED_MECHANISMS)
    assert f"at most {MAX_PASSWORD_LENGTH} bytes" in _read(lines)


def test_the_proxies_described_are_those_of_the_code_with_their_ports() -> None:
    lines = _subsection(SERVER, "Proxies")
    described = dict(
        re.findall(r"\.It Li ([a-z0-9]+)://.*?at port (\d+) by default", " ".join(lines))
    )
    assert {scheme: int(port) for scheme, port in described.items()} == PROXY_PORTS
    option = " ".join(_items("OPTIONS")["-proxy"])
    assert set(re.findall(r"([a-z0-9]+)://", option)) == set(PROXY_PORTS)


def test_the_types_of_secure_channels_are_those_of_the_code() -> None:
    lines = [line for line in _items("OPTIONS")["-secure-channels"] if line.startswith(".Cm")]
    named = {word for line in lines for word in _macro(line)[1:]} - {",", "."}
    assert named == {*(each.name.lower() for each in ChannelType), "all"}
    assert f"numbers from {USER_DEFINED_START} on" in _prose("OPTIONS")


def test_the_subject_in_the_options_can_be_taken() -> None:
    lines = _items("OPTIONS")["-host-subject"]
    (example,) = (line for line in lines if line.startswith(".Li "))
    parse_subject(_macro(example)[1])


# The specification


def test_the_keys_described_are_those_of_the_code_in_their_order() -> None:
    assert list(_items(SPECIFICATION)) == list(KEYS)


def test_only_bare_keys_are_described_without_a_value() -> None:
    forms = {_macro(line)[2]: _macro(line)[3:] for line in _section(SPECIFICATION) if ".It" in line}
    assert {key for key, form in forms.items() if form[:3] != ["Ns", "=", "Ns"]} == BARE


@pytest.mark.parametrize("key", CHOICES)
def test_the_values_described_are_those_of_the_code(key: str) -> None:
    text = " ".join(_items(SPECIFICATION)[key])
    heading = next(
        line for line in map(_plain, _section(SPECIFICATION)) if line.startswith(f".It Cm {key} ")
    )
    words = set(re.findall(r"[a-z]+(?:-[a-z]+)*", f"{heading} {_plain(text)}"))
    assert set(CHOICES[key]) <= words


def test_the_local_ends_are_named() -> None:
    assert f"{', '.join(ENDS[:-1])} or {ENDS[-1]}" in _prose(SPECIFICATION).replace(" ,", ",")


@pytest.mark.parametrize("key", KEYS)
def test_each_key_has_an_example_that_can_be_taken(key: str) -> None:
    examples = [
        _plain(line.removeprefix(".Dl "))
        for line in _items(SPECIFICATION)[key]
        if line.startswith(".Dl ")
    ]
    assert len(examples) == 1
    assert re.search(rf"(?:^|,){key}(?:=|,|$)", examples[0])
    parse_custom_channel(examples[0])


# The log


def _told_away() -> dict[str, set[str]]:
    """The events that `Sessions` tells by one function, with their fields."""
    source = Path(sessions.__file__).read_text(encoding="utf-8")
    lost = re.findall(r'event, why = "([a-z-]+)"', source)
    away = re.findall(r'_tell_away\("([a-z-]+)"', source)
    return {each: {"delay", "takeovers"} for each in lost} | {each: {"delay"} for each in away}


def _logged() -> dict[str, set[str]]:
    """The events in the code, each with the fields that only it has."""
    events: dict[str, set[str]] = {}
    for path in (ROOT / "spicebridge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "event"
                and isinstance(node.args[0], ast.Constant)
            ):
                fields = {each.arg for each in node.keywords if each.arg}
                events.setdefault(str(node.args[0].value), set()).update(fields)
            if isinstance(node, ast.Dict):
                entries = {
                    key.value: value
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant)
                }
                name, more = entries.get("event"), entries.get("fields")
                if isinstance(name, ast.Constant) and isinstance(more, ast.Dict):
                    keys = {str(key.value) for key in more.keys if isinstance(key, ast.Constant)}
                    events.setdefault(str(name.value), set()).update(keys)
    return events


def test_the_events_described_are_those_of_the_code_with_their_fields() -> None:
    described = {
        event: {_macro(line)[1] for line in lines if line.startswith(".Li ")}
        for event, lines in _items("LOG").items()
    }
    # a record without an event of its own is a "log"
    assert described == {**_logged(), **_told_away(), "log": set()}


def test_the_members_of_a_channel_in_json_are_described() -> None:
    lines = _items("COMMANDS")["list"]
    members = [_macro(line)[1] for line in lines if line.startswith(".Li ")]
    assert members == list(Row.__dataclass_fields__)


# Environment and exit status


def test_the_environment_described_is_that_of_the_code() -> None:
    described = set(_items("ENVIRONMENT"))
    ours = {URI_VARIABLE, PASSWORD_VARIABLE, RUNTIME_VARIABLE, PROXY_VARIABLE}
    paths = ssl.get_default_verify_paths()
    assert described == {
        *(paths.openssl_cafile_env, paths.openssl_capath_env),
        *(*ours, *SERVICE_MANAGER),
    }
    name = r"(?:SPICEBRIDGE|SPICE|XDG|SSL|NOTIFY|WATCHDOG|LISTEN)_[A-Z_]+"
    mentioned = set(re.findall(name, "\n".join(_source())))
    assert mentioned == described


def test_the_files_described_are_those_of_the_code() -> None:
    described = {_macro(line)[2] for line in _section("FILES") if line.startswith(".It ")}
    assert described == {str(TRUSTSTORE)}
    assert f".Pa {TRUSTSTORE}" in _subsection(SERVER, "TLS")


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    rows = [
        [cell.strip() for cell in line.removeprefix(".It ").split("Ta ")[:2]]
        for line in _section("EXIT STATUS")
        if re.match(r"\.It \d", line)
    ]
    table = [(int(code), name.removeprefix("Li ")) for code, name in rows]
    errors = sorted((error.exit_code, error.__name__) for error in _errors())
    closed = (OutputClosedError.exit_code, OutputClosedError.__name__)
    signalled = [(128 + number, "") for number in (SIGHUP, SIGINT, SIGTERM)]
    assert table == sorted([(0, ""), *errors, *signalled, closed])


# The examples


_SERVICE = "ExecStart=/usr/bin/"


def _examples_text() -> str:
    lines = [*_section("EXAMPLES"), *_section("SYSTEMD")]
    return _plain("\n".join(lines)).replace("\\\n", " ")


def _examples() -> list[list[str]]:
    """The words of every spicebridge command in the examples."""
    found: list[list[str]] = []
    for line in _examples_text().splitlines():
        if not re.match(rf" *(?:{_SERVICE})?spicebridge ", line):
            continue
        # descriptors are redirected, and pipes begin, behind the arguments
        without_fds = re.sub(r"\d(?=[<>])", "", line.replace(_SERVICE, ""))
        lexer = shlex.shlex(without_fds, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found.append(list(takewhile(lambda word: not set(word) <= set("<>|&;"), lexer))[1:])
    return found


def test_the_examples_show_every_kind_of_use() -> None:
    commands = _examples()
    text = " ".join(word for words in commands for word in words)
    assert len(commands) == len(re.findall(r"\bspicebridge (?!on|of)", _examples_text()))
    for each in ("list", "serve", "stdio", "pty=", "unixsocket=", "usbredir", "--ready-fd"):
        assert each in text
    for each in (".vv", "virsh domdisplay", "spice+tls://", "spice+unix://", "wss://", "socks5://"):
        assert each in text
    for each in ("--ca-file", "--host-subject", "--pinned-key", "--tls-cert", "--password-command"):
        assert each in text


def test_the_proxies_of_the_examples_can_be_taken() -> None:
    proxies = re.findall(rf"^export {PROXY_VARIABLE}=(\S+)$", _examples_text(), re.MULTILINE)
    assert proxies
    for each in proxies:
        parse_proxy(each)


PIN = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize("words", _examples(), ids=lambda words: words[0])
def test_each_example_can_be_taken(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options and arguments are known, and every value can be read."""
    monkeypatch.chdir(tmp_path)
    names = re.findall(r"^FileDescriptorName=(\S+)$", _examples_text(), re.MULTILINE)
    monkeypatch.setattr(descriptors, "given", lambda: dict(enumerate(names, 3)))
    words = [word.replace("%t", "/run/user/1000") for word in words]  # as systemd.unit(5) has it
    trustme.CA().cert_pem.write_to_path("ca-cert.pem")
    group: Any = typer.main.get_command(app)
    parsed = group.make_context("spicebridge", [word.replace("$pin", PIN) for word in words])
    name, command, rest = group.resolve_command(parsed, [*parsed._protected_args, *parsed.args])
    given = command.make_context(name, rest).params
    for spec in given.get("custom_channel") or []:
        parse_custom_channel(spec, serving=name == "serve")
    if given.get("uri") and not given["uri"].startswith("$") and not given["uri"].endswith(".vv"):
        server_target(
            given["uri"],
            ReachOptions(**{each.name: given[each.name] for each in fields(ReachOptions)}),
        )
    if given.get("listen"):
        parse_host_port(given["listen"])
    assert name != "bridge" or given["custom_channel"] or given["share"]
