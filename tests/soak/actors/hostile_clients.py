"""Clients that lie to a `serve`, among good ones."""

from __future__ import annotations

from typing import Final

from spicebridge import UnixAddress
from tests.hostile.client_liar import Liar, Lie, hung_up, works
from tests.hostile.test_clients import LIES, LINKS, channels
from tests.soak.actor import Actor
from tests.soak.program import Program
from tests.soak.program import channels as words

_LIES: Final[dict[str, Lie]] = {**LINKS, **LIES}
_ALIVE: Final = 5


class HostileClients(Actor):
    """After each lie a good client is served; each has its session and a program of its own."""

    name = "hostile-clients"

    def set_up(self) -> None:
        self._address = UnixAddress(str(self.folder / "spice"))
        offered = words(*channels(self.folder))
        self.start(Program(self.name, "serve", "--listen", str(self._address), *offered))

    def round(self) -> None:
        lie = _LIES[self.dice.choice(sorted(_LIES))]
        self.tally.faults += 1
        with Liar(self._address) as liar:
            for sock in lie(liar) or ():
                hung_up(sock)
        self.calm()

    def calm(self) -> None:
        works(self._address)
        self.tally.rounds += 1
        self.tally.bytes += _ALIVE
