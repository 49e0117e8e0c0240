"""Reads the command line of a bridge without Typer, where it is plain.

Typer, and pydantic below it, cost a start as much as all the rest, up to the first byte. So the
lines that services and scripts start bridges with are read here: long options with a value behind
``=`` or a blank, -q, -v, and a URI. All else is Typer's: other commands, help, ``-qv``, whatever is
wrong or not quite so plain. A test holds that both read a line alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from spicebridge.cli.bridging import RECONNECT_MAX, BridgeOptions
from spicebridge.cli.log import LogFormat
from spicebridge.cli.target import ReachOptions

_Read = Callable[[str], Any]
"""Makes a value of its text; a ValueError says that Typer is to judge it."""


def _descriptor(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> int:
    if not re.fullmatch("0|[1-9][0-9]{0,8}", text):
        raise ValueError(text)
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[1-9][0-9]{0,8}(\.[0-9]{1,8})?", text):
        raise ValueError(text)
    return float(text)


_OPTIONS: Final[Mapping[str, _Read]] = {
    "--share": str,
    "--password-file": Path,
    "--password-command": str,
    "--connect-timeout": _seconds,
    "--reconnect": _seconds,
    "--takeover-limit": _number,
    "--idle-timeout": _seconds,
    "--ready-fd": _descriptor,
    "--log-format": LogFormat,
}

_REACH_OPTIONS: Final[Mapping[str, _Read]] = {
    "--ca-file": Path,
    "--host-subject": str,
    "--pinned-key": str,
    "--tls-ciphers": str,
    "--secure-channels": str,
    "--proxy": str,
    "--sasl-mechanism": str,
}

_CUSTOM_CHANNEL: Final = "--custom-channel"
_RECONNECT: Final = "--reconnect"
_INSECURE: Final = "--insecure-tls"
_QUIET: Final = frozenset({"-q", "--quiet"})
_VERBOSE: Final = frozenset({"-v", "--verbose"})
_URI: Final = re.compile(r".+://.*|.+\.vv")  # of one word, no command's name looks like it


def read_plain(words: Sequence[str]) -> BridgeOptions | None:
    """Reads a command line; None where Typer has to."""
    flags: list[str] = []
    specs: list[str] = []
    values: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if word in _QUIET | _VERBOSE or word == _INSECURE:
            flags.append(word)
            continue
        if name == _RECONNECT and not equals:
            value = f"{RECONNECT_MAX:g}"
        elif name and not equals:
            value = next(rest, "")
        if not value.isprintable() or not value or value.startswith("-") or name in values:
            return None
        if name == _CUSTOM_CHANNEL:
            specs.append(value)
        elif name in _OPTIONS or name in _REACH_OPTIONS or (not name and _URI.fullmatch(value)):
            values[name] = value
        else:
            return None
    if not specs:
        return None
    try:
        reach = _read(values, _REACH_OPTIONS)
        others = _read(values, _OPTIONS)
    except ValueError:
        return None
    return BridgeOptions(
        uri=values.get(""),
        custom_channel=specs,
        reach=ReachOptions(**reach, insecure_tls=_INSECURE in flags),
        verbose=sum(flag in _VERBOSE for flag in flags),
        quiet=any(flag in _QUIET for flag in flags),
        **others,
    )


def _read(values: Mapping[str, str], options: Mapping[str, _Read]) -> dict[str, Any]:
    """The values of some options, by the names of their attributes."""
    return {
        name.removeprefix("--").replace("-", "_"): read(values[name])
        for name, read in options.items()
        if name in values
    }
