"""A guest that moves from QEMU to QEMU, which its application does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.peers.guest import Guest
from tests.peers.migration import Migrating as Moving
from tests.real.tools import connection
from tests.real.traffic import Echo
from tests.soak.actor import Actor
from tests.soak.program import Program, channels

_PORT: Final = "com.example.echo"


class _SizedEcho(Echo):
    """It says how much has come."""

    size = 0

    def came(self, data: bytes) -> None:
        super().came(data)
        self.size += len(data)


class Migrating(Actor):
    """Seamless migrations, and such that are cancelled; nothing is missing after either."""

    name = "migrating"

    def set_up(self) -> None:
        self._moving = self.stack.enter_context(Moving(self.folder, _guest))
        self._path = self.folder / "s"
        spec = channels(f"port={_PORT},unixsocket={self._path}")
        self.start(Program(self.name, self._moving.guest.uri, *spec))

    def round(self) -> None:
        with connection(self._path) as sock:
            traffic = _SizedEcho(sock)
            traffic.wait_more()
            self.tally.faults += 1
            if self.dice.random() < 0.2:
                self._moving.cancel()
            else:
                self._moving.migrate()
            self._finish(traffic)

    def calm(self) -> None:
        with connection(self._path) as sock:
            self._finish(_SizedEcho(sock))

    def _finish(self, traffic: _SizedEcho) -> None:
        traffic.wait_more()
        traffic.end()
        self.tally.rounds += 1
        self.tally.bytes += traffic.size


def _guest(folder: Path, incoming: bool) -> Guest:
    return Guest(
        folder,
        _PORT,
        echo=(_PORT,),
        webdav=False,
        incoming=incoming,
        extra=["-spice", "seamless-migration=on"],
    )
