"""The completions of three shells, really run, and held against the code."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from spicebridge import ChannelType, parse_proxy
from spicebridge.cli.commands import app
from spicebridge.cli.log import LogFormat
from spicebridge.cli.spec import BARE, CHOICES, ENDS, KEYS
from spicebridge.protocol.sasl_choice import MECHANISMS
from spicebridge.transport import uri
from spicebridge.transport.proxy_address import _PORTS as PROXY_PORTS
from tests.conftest import PATIENCE

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "completions"
URIS = {
    f"{scheme}:///" if scheme == "spice+unix" else f"{scheme}://"
    for scheme in re.findall(r"``([a-z+]+)://", uri.__doc__ or "")
}
TYPES = {each.name.lower() for each in ChannelType}

Complete = Callable[[str], set[str]]
"""Takes a command line up to the cursor, and tells what the last word may become."""


def _commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def _options(command: Any) -> set[str]:
    return {
        name
        for parameter in command.params
        if parameter.param_type_name == "option"
        for name in parameter.opts
    }


def _visible() -> set[str]:
    return {name for name, command in _commands().items() if not command.hidden}


# How each shell is asked


def _bash_words(line: str) -> list[str]:
    """As readline cuts a line into COMP_WORDS: at blanks, and around runs of = and :."""
    words = [part for word in line.split() for part in re.findall(r"[=:]+|[^=:]+", word)]
    return [*words, ""] if line[-1].isspace() or line[-1] in "=:" else words


def _bash(line: str, prelude: str = "") -> set[str]:
    words = _bash_words(line)
    script = f"""
        {prelude}
        source "$1"/spicebridge.bash
        COMP_LINE=$2 COMP_POINT=${{#2}}
        COMP_WORDS=("${{@:3}}") COMP_CWORD=$(($# - 3))
        _spicebridge || exit
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", FOLDER, line, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert not done.stderr
    # readline keeps what stands before the last = or :, unless that is quoted
    last = line.split(" ")[-1]
    kept = "" if last.startswith("'") else last[: max(last.rfind("="), last.rfind(":")) + 1]
    return {kept + answer for answer in done.stdout.splitlines() if answer}


_ZSH_SETUP = r"""
unsetopt global_rcs
fpath=("$SPICEBRIDGE_COMPLETIONS" $fpath)
autoload -Uz compinit
compinit -u -D
unsetopt auto_list auto_menu beep
zstyle ':completion:*' completer _complete
compadd() {
  # asked to compute only, not to offer
  if [[ ${@[1,(i)(-|--)]} == *-[a-zA-Z1-9]#[OAD]\ * ]]; then
    builtin compadd "$@"
    return
  fi
  local -a matches
  local -A given
  zparseopts -E -A given P: p: S: s: q r: R:
  builtin compadd -A matches "$@"
  local match
  for match in $matches; do
    print -r -- "$IPREFIX$given[-P]$given[-p]$match$given[-s]$given[-S]" >>"$SPICEBRIDGE_OUT"
  done
  builtin compadd "$@"
}
zle-line-init() {
  BUFFER=$SPICEBRIDGE_LINE CURSOR=${#SPICEBRIDGE_LINE}
  zle complete-word
  exit 0
}
zle -N zle-line-init
"""


def _zsh(line: str, tmp_path: Path) -> set[str]:
    """Starts an interactive zsh on a terminal; its first prompt completes the line and exits."""
    home, out = tmp_path / "zsh", tmp_path / "out"
    home.mkdir(exist_ok=True)
    (home / ".zshrc").write_text(_ZSH_SETUP, encoding="utf-8")
    out.write_text("", encoding="utf-8")
    master, slave = pty.openpty()
    try:
        done = subprocess.run(
            ["zsh", "-d", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            timeout=PATIENCE,
            check=False,
            start_new_session=True,
            cwd=tmp_path,
            env={
                "PATH": os.environ["PATH"],
                "TERM": "vt100",
                "ZDOTDIR": str(home),
                "SPICEBRIDGE_COMPLETIONS": str(FOLDER),
                "SPICEBRIDGE_LINE": line,
                "SPICEBRIDGE_OUT": str(out),
            },
        )
        screen = os.read(master, 65536).decode(errors="replace") if done.returncode else ""
    finally:
        os.close(slave)
        os.close(master)
    assert not done.returncode, screen
    return set(out.read_text(encoding="utf-8").splitlines())


def _fish(line: str, tmp_path: Path) -> set[str]:
    script = 'source "$argv[1]"/spicebridge.fish; complete -C "$argv[2]"'
    done = subprocess.run(
        ["fish", "--no-config", "-c", script, str(FOLDER), line],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert not done.stderr
    return {answer.partition("\t")[0] for answer in done.stdout.splitlines()}


@pytest.fixture(params=["bash", "bash-completion", "zsh", "fish"])
def complete(request: pytest.FixtureRequest, tmp_path: Path) -> Complete:
    """Asks one of the shells; bash without its package of completions and with it."""
    shell, _, package = request.param.partition("-")
    if shell == "zsh":
        return lambda line: _zsh(line, tmp_path)
    if shell == "fish":
        return lambda line: _fish(line, tmp_path)
    if not package:
        return _bash
    path = Path("/usr/share/bash-completion/bash_completion")
    return lambda line: _bash(line, prelude=f"source {path}")


def _spec(complete: Complete, spec: str, way: str = "spicebridge --custom-channel ") -> set[str]:
    """What a specification may become."""
    answers = complete(f"{way}{spec}")
    head = way.split()[-1] if way.endswith("=") else ""
    return {answer.removeprefix(head) for answer in answers}


def _joined(head: str, tails: Iterable[str]) -> set[str]:
    return {head + tail for tail in tails}


# Held against the code, both ways


def test_the_commands_offered_are_those_of_the_code(complete: Complete) -> None:
    answers = complete("spicebridge ")
    assert {answer for answer in answers if ":" not in answer} == _visible()
    assert {answer for answer in answers if ":" in answer} == URIS


def test_the_starts_of_uris_are_those_that_can_be_taken() -> None:
    assert len(URIS) == 5
    for start in URIS:
        uri.parse_uri(f"{start}vmhost:5900")


@pytest.mark.parametrize("name", ["bridge", "list", "serve", "demo"])
def test_the_options_offered_are_those_of_the_code(complete: Complete, name: str) -> None:
    commands = _commands()
    assert set(commands) == {"bridge", "list", "serve", "demo"}
    expected = _options(commands[name]) | {"--help"}
    if name == "bridge":
        expected.add("--version")
    line = "spicebridge " if name == "bridge" else f"spicebridge {name} "
    answers = complete(f"{line}-") | complete(f"{line}--")
    assert {answer.rstrip("=") for answer in answers} == expected


@pytest.mark.parametrize("command", ["", "serve "])
def test_the_keys_offered_are_those_of_the_code(complete: Complete, command: str) -> None:
    expected = {key if key in BARE else f"{key}=" for key in KEYS}
    assert _spec(complete, "", f"spicebridge {command}--custom-channel ") == expected


@pytest.mark.parametrize("key", KEYS)
def test_the_values_offered_are_those_of_the_code(
    complete: Complete, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if key in ENDS:
        return  # files and commands, below
    monkeypatch.chdir(tmp_path)
    answers = _spec(complete, f"{key}=")
    assert answers == _joined(f"{key}=", CHOICES.get(key, ()))


def test_the_log_formats_offered_are_those_of_the_code(complete: Complete) -> None:
    assert complete("spicebridge --log-format ") == {each.value for each in LogFormat}


def test_the_mechanisms_of_sasl_offered_are_those_of_the_code(complete: Complete) -> None:
    assert complete("spicebridge --sasl-mechanism ") == set(MECHANISMS)


def test_the_proxies_offered_are_those_of_the_code(complete: Complete) -> None:
    answers = complete("spicebridge list --proxy ")
    assert answers == {f"{scheme}://" for scheme in PROXY_PORTS}
    for answer in answers:
        parse_proxy(f"{answer}vmhost")


def test_the_channel_types_offered_are_those_of_the_code(complete: Complete) -> None:
    line = "spicebridge --secure-channels "
    assert complete(line) == {*TYPES, "all"}
    rest = TYPES - {"main", "port"}
    assert complete(f"{line}main,port,") == _joined("main,port,", rest)
    assert complete(f"{line}main,pl") == {"main,playback"}
    equals = "--secure-channels=main,po"
    assert complete(f"spicebridge {equals}") == {"--secure-channels=main,port"}


# Inside a specification


def test_keys_go_on_after_a_comma_without_what_is_there_already(complete: Complete) -> None:
    head = "unixsocket=/tmp/s,mode=listen,"
    expected = {f"{key}=" for key in KEYS if key not in ENDS and key != "mode"}
    assert _spec(complete, head) == _joined(head, expected)
    assert _spec(complete, f"{head}cha") == {f"{head}channelid="}


def test_a_bare_key_counts_as_a_local_end(complete: Complete) -> None:
    assert _spec(complete, "stdio,p") == {"stdio,port=", "stdio,perm="}


def test_values_are_completed_after_a_comma(complete: Complete) -> None:
    head = "unixsocket=/tmp/s,channelid="
    assert _spec(complete, f"{head}u") == {f"{head}usbredir"}


def test_a_doubled_comma_is_one_of_a_value(complete: Complete) -> None:
    head = "unixsocket=/tmp/a,,mode=b,"
    assert _spec(complete, f"{head}mo") == {f"{head}mode="}


def test_a_second_specification_begins_anew(complete: Complete) -> None:
    line = "spicebridge --custom-channel stdio,channelid=port --custom-channel "
    assert complete(f"{line}unixs") == {"unixsocket="}


def test_an_option_may_be_written_with_an_equals_sign(complete: Complete) -> None:
    way = "spicebridge --custom-channel="
    assert _spec(complete, "pipe=x,atta", way) == {"pipe=x,attach="}
    assert _spec(complete, "attach=", way) == {"attach=demand", "attach=always"}


@pytest.mark.parametrize("key", ["unixsocket", "pipe", "pty"])
def test_local_ends_in_the_file_system_complete_to_files(
    complete: Complete, key: str, tmp_path: Path
) -> None:
    (tmp_path / "socket-1").touch()
    (tmp_path / "socket-2").touch()
    head = f"attach=always,{key}={tmp_path}/"
    assert _spec(complete, f"{head}sock") == _joined(head, ["socket-1", "socket-2"])


def test_exec_completes_to_programs(
    complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "spicebridge-test-guest"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert _spec(complete, "exec=spicebridge-test-g") == {f"exec={program.name}"}


# Beside it


@pytest.mark.parametrize(
    "option", ["list --password-file", "list --ca-file", "serve --tls-cert", "serve --tls-key"]
)
def test_files_are_completed(complete: Complete, option: str, tmp_path: Path) -> None:
    (tmp_path / "password").touch()
    assert complete(f"spicebridge {option} {tmp_path}/pass") == {f"{tmp_path}/password"}


@pytest.mark.parametrize("command", ["", "list "])
def test_connection_files_are_completed(
    complete: Complete, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    (folder / "older").mkdir(parents=True)
    (folder / "vm.vv").touch()
    (folder / "vm.txt").touch()
    answers = complete(f"spicebridge {command}{folder}/")
    assert {answer.rstrip("/") for answer in answers} == _joined(f"{folder}/", ["vm.vv", "older"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.vv").touch()
    assert complete(f"spicebridge {command}he") == {"here.vv"}
    answers = complete(f"spicebridge {command}")
    assert answers == {"here.vv", *URIS, *(() if command else _visible())}


def test_addresses_complete_to_sockets(complete: Complete, tmp_path: Path) -> None:
    (tmp_path / "spice").touch()
    for head in ("spicebridge list spice+unix://", "spicebridge serve --listen unix:"):
        word = head.split()[-1]
        assert complete(f"{head}{tmp_path}/sp") == {f"{word}{tmp_path}/spice"}


def test_options_may_stand_before_the_command(complete: Complete) -> None:
    line = "spicebridge -v --password-file list list --js"
    assert {answer.rstrip("=") for answer in complete(line)} == {"--json"}


def test_the_value_of_an_option_is_no_command(complete: Complete) -> None:
    assert complete("spicebridge --password-file list --js") == set()
    assert complete("spicebridge --ready-fd 3 se") == {"serve"}
    assert complete("spicebridge --idle-timeout 90 --takeover-limit 5 se") == {"serve"}


def test_reconnect_has_no_value_behind_a_blank(complete: Complete) -> None:
    assert complete("spicebridge --reconnect se") == {"serve"}
    assert complete("spicebridge --reconnect=5 se") == {"serve"}


def test_no_command_is_offered_behind_a_uri(complete: Complete) -> None:
    # where nothing else can follow, zsh offers options without being asked for them
    def words(line: str) -> set[str]:
        return {answer for answer in complete(line) if not answer.startswith("-")}

    assert words("spicebridge spice://127.0.0.1:5900 ") == set()
    assert words("spicebridge list ") == URIS
    assert words("spicebridge list spice://127.0.0.1:5900 ") == set()
    assert words("spicebridge serve ") == set()


def test_bash_completes_a_quoted_specification() -> None:
    head = "unixsocket=/tmp/s,atta"
    assert _bash(f"spicebridge --custom-channel '{head}") == {f"{head}ch="}


# Installed


def test_the_wheel_installs_man_page_and_completions_where_programs_look() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {
        "man/spicebridge.1": "share/man/man1/spicebridge.1",
        "completions/spicebridge.bash": "share/bash-completion/completions/spicebridge",
        "completions/_spicebridge": "share/zsh/site-functions/_spicebridge",
        "completions/spicebridge.fish": "share/fish/vendor_completions.d/spicebridge.fish",
    }
    for source in shared:
        assert (ROOT / source).stat().st_size


def test_a_wheel_has_them(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".data/data/")[2] for name in archive.namelist()}
    assert names >= {
        "share/man/man1/spicebridge.1",
        "share/bash-completion/completions/spicebridge",
        "share/zsh/site-functions/_spicebridge",
        "share/fish/vendor_completions.d/spicebridge.fish",
    }
