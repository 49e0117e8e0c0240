"""Applications that come and go, as fast as they can."""

from __future__ import annotations

from typing import Final

from tests.peers.libspice import SpiceEndpoint, poured
from tests.real.tools import connection, receive, sha256
from tests.soak.actor import Actor, check
from tests.soak.program import STAYS, Program, channels

_ECHO: Final = "com.example.echo"
_POUR: Final = "com.example.pour"
_POURED: Final = 1000
_APPLICATIONS: Final = 200
_LINKS: Final = 10


class Churn(Actor):
    """At a channel that is always linked, and at one that is linked for each of them."""

    name = "churn"

    def set_up(self) -> None:
        server = self.stack.enter_context(
            SpiceEndpoint(f"echo:{_ECHO}", f"pour:{_POUR}", pour=_POURED)
        )
        self._echo, self._pour = self.folder / "e", self.folder / "p"
        specs = channels(
            f"port={_ECHO},unixsocket={self._echo},attach=always",
            f"port={_POUR},unixsocket={self._pour}",
        )
        self.start(Program(self.name, server.uri, *STAYS, *specs))

    def round(self) -> None:
        for _ in range(_APPLICATIONS):
            said = self.dice.randbytes(self.dice.randrange(1, 5000))
            with connection(self._echo) as sock:
                sock.sendall(said)
                check(receive(sock, len(said)) == said, "something else came back")
            self.tally.bytes += len(said)
        for _ in range(_LINKS):
            with connection(self._pour) as sock:
                check(sha256(receive(sock, _POURED)) == poured(_POURED), "something else came")
            self.tally.bytes += _POURED
        self.tally.rounds += 1

    def calm(self) -> None:
        self.round()
