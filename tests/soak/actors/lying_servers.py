"""A server that lies and comes to its senses, again and again."""

from __future__ import annotations

from typing import Final

from tests.cli.fake_server import fake_server
from tests.hostile.lying_server import SERVED, Liar
from tests.hostile.test_servers import BROKEN, HARMLESS
from tests.peers.faulty_relay import Fault, FaultyRelay
from tests.real.tools import connection, receive_to_end
from tests.soak.actor import Actor, check
from tests.soak.program import Program, channels

_LIES: Final = {**BROKEN, **HARMLESS}
_PATIENCE: Final = 0.5
"""Seconds that an application gives a server that lies."""


class LyingServers(Actor):
    """An application gets nothing that was not sent, and all of it once the server is honest."""

    name = "lying-servers"

    def set_up(self) -> None:
        self._liar = _digested(Liar())
        self._path = self.folder / "s"
        script = fake_server(self.folder / "liar", lambda client: self._liar(client))
        uri = self.stack.enter_context(script)
        self._relay = self.stack.enter_context(FaultyRelay(uri, unix=self.folder / "relay"))
        spec = channels(f"channelid=port,unixsocket={self._path}")
        stays = "--reconnect=0.2", "--takeover-limit=0"
        self.start(Program(self.name, self._relay.uri, *stays, *spec))

    def round(self) -> None:
        step, lie = _LIES[self.dice.choice(sorted(_LIES))]
        self._liar = _digested(Liar(step, lie))
        self.tally.faults += 1
        self._cut()
        with connection(self._path) as sock:
            sock.settimeout(_PATIENCE)
            got = b""
            try:
                while piece := sock.recv(65536):
                    got += piece
            except TimeoutError:  # the server is away, as far as a bridge can tell
                pass
        check(SERVED.startswith(got), "it has got what nobody sent")
        self.tally.told += got != SERVED
        self._liar = _digested(Liar())
        self._cut()
        self.calm()

    def calm(self) -> None:
        for _ in range(30):
            with connection(self._path) as sock:
                got = receive_to_end(sock)
            check(SERVED.startswith(got), "it has got what nobody sent")
            self.tally.rounds += 1
            self.tally.bytes += len(got)
            if got == SERVED:
                return
            self.tally.told += 1
        check(False, "an honest server, and its bytes do not come")

    def _cut(self) -> None:
        """Has the bridge begin a session."""
        for each in self._relay.connections:
            if not each.closed:
                each.fail(Fault.CLOSE)
        self._relay.call(self._relay.connections.clear)


def _digested(liar: Liar) -> Liar:
    """One that waits for nobody."""
    liar.digested.set()
    return liar
