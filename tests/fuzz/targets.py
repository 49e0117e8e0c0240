"""The targets: each is a module here with a table `PARSERS`, and a folder in seeds/."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from tests.fuzz.script import Parser

TARGETS: Final = {
    "link": "links and logins, of clients and servers",
    "conversation": "messages of linked channels, of clients and servers",
    "mux": "frames of many streams",
    "wire": "what servers on WebSockets and proxies answer, and certificates",
    "words": "URIs, connection files and command lines",
    "share": "requests to the server of a shared folder",
}
"""Names of the targets, and what is in them. So few, as CI gives each of them a minute."""

SEEDS: Final = Path(__file__).with_name("seeds")
"""Where inputs to begin with are, in a folder for each target; see ``make_seeds.py``."""


def parsers(target: str) -> Sequence[Parser]:
    """The parsers of a target; imports it."""
    found: Sequence[Parser] = import_module(f"tests.fuzz.{target}").PARSERS
    return found
