"""The installed `spicebridge` while it runs."""

from __future__ import annotations

import os
import select
from pathlib import Path

from tests.conftest import EXECUTABLE, PATIENCE
from tests.peers.processes import Process


class Program(Process):
    """A bridge or a `serve` whose local ends exist.

    Args:
        name: what it is called in the table.
        arguments: of the command line.

    Attributes:
        name: as given.
    """

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as pipe:
            try:
                argv: list[str | Path] = [EXECUTABLE, *arguments, "--ready-fd", str(writer)]
                super().__init__(argv, pass_fds=[writer])
            finally:
                os.close(writer)
            if not (select.select([pipe], [], [], PATIENCE)[0] and pipe.read()):
                error = self.error("it is not ready")
                self.stop()
                raise error


def channels(*specs: str) -> list[str]:
    """The words of the command line for some channels."""
    return [word for spec in specs for word in ("--custom-channel", spec)]


STAYS = "--reconnect=1", "--takeover-limit=0"
"""Sessions end soon and without a word here, as if others had taken them."""
