"""The README is held against the code: its commands, its Python, its map of the rooms."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme
import typer.main

import spicebridge as package
from spicebridge.cli.commands import app
from spicebridge.cli.spec import parse_custom_channel
from spicebridge.cli.target import ReachOptions, server_target
from spicebridge.errors import SpicebridgeError
from tests.conftest import PATIENCE, Spicebridge

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """The words of each `spicebridge` command in the README."""
    for block in blocks("console"):
        for line in block.replace("\\\n", " ").splitlines():
            if match := re.search(r"\bspicebridge .*", line):
                yield shlex.split(match[0].rstrip(" &"), comments=True)


def test_it_shows_five_recipes_or_more() -> None:
    shown = {tuple(command) for command in commands()}
    assert len(shown) >= 5


def test_every_specification_in_it_can_be_taken() -> None:
    specs = [
        following
        for command in commands()
        for word, following in pairwise(command)
        if word == "--custom-channel"
    ]
    assert len(specs) >= 5
    for spec in specs:
        parse_custom_channel(spec)


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_in_it_can_be_taken(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trustme.CA().cert_pem.write_to_path("ca-cert.pem")
    group: Any = typer.main.get_command(app)
    parsed = group.make_context("spicebridge", words[1:])
    name, command, rest = group.resolve_command(parsed, [*parsed._protected_args, *parsed.args])
    given = command.make_context(name, rest).params
    uri = given.get("uri")
    if uri and not uri.startswith("$") and not uri.endswith(".vv"):
        reach = {each.name: given[each.name] for each in fields(ReachOptions)}
        server_target(uri, ReachOptions(**reach))


def test_it_gives_exactly_two_commands_to_begin_with() -> None:
    begin = blocks("console")[0].splitlines()
    assert [line.partition("#")[0].split() for line in begin] == [
        ["$", "make", "demo"],
        ["$", "make", "test"],
    ]


def test_the_map_names_every_room() -> None:
    mapped = set(re.findall(r"^\| `([a-z]+)(?:\.py|/)` \|", README, flags=re.MULTILINE))
    rooms = {
        path.stem
        for path in (ROOT / "spicebridge").iterdir()
        if (path.is_dir() or path.suffix == ".py") and not path.name.startswith("__")
    }
    assert mapped == rooms


def test_its_python_runs(spicebridge: Callable[..., Spicebridge], short_tmp: Path) -> None:
    (code,) = blocks("python")
    path = short_tmp / "spice"
    spicebridge(
        *("serve", "--listen", f"unix:{path}"),
        *("--custom-channel", "port=org.qemu.monitor.hmp.0,exec=cat"),
    )
    code = code.replace("spice://127.0.0.1:5900", f"spice+unix://{path}")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    port = "PortInit(name='org.qemu.monitor.hmp.0', opened=False)"
    assert done.stdout.splitlines() == [f"port:0 {port}", repr(b"info status\n")]


# The Python API


def test_what_the_package_offers_is_there() -> None:
    for name in package.__all__:
        assert hasattr(package, name)


@pytest.mark.parametrize("error", SpicebridgeError.__subclasses__())
def test_every_error_can_be_imported_from_the_package(error: type[SpicebridgeError]) -> None:
    if error.__module__ == "spicebridge.errors":
        assert getattr(package, error.__name__) is error


def test_the_command_line_uses_nothing_but_the_package() -> None:
    for path in (ROOT / "spicebridge" / "cli").glob("*.py"):
        for name in re.findall(r"^from (spicebridge\S*) import", path.read_text(), re.MULTILINE):
            assert name == "spicebridge" or name.startswith("spicebridge.cli"), (path, name)
