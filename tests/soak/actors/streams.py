"""Many streams at once, from a `serve` to a bridge."""

from __future__ import annotations

import socket
import time
from functools import partial
from typing import Final

from tests.cli.echo import echo_server
from tests.peers.faulty_relay import FaultyRelay
from tests.peers.libspice import poured
from tests.real.faults import Noise, send_noise
from tests.real.tools import Task, connection
from tests.soak.actor import Actor, check
from tests.soak.actors.raw import ended
from tests.soak.network import Network
from tests.soak.program import STAYS, Program, channels
from tests.soak.tally import LostError

_MOST: Final = 40
_SIZE: Final = 300_000
_BACK: Final = 30
_CALM: Final = 0.3
_EARLY: Final = 0.1


class Streams(Actor):
    """Applications at `serve` each get a stream; behind the bridge an echo has its other end."""

    name = "streams"

    def set_up(self) -> None:
        self._entry = self.folder / "in"
        self._troubled = False
        self.stack.enter_context(echo_server(self.folder / "echo"))
        spice = self.folder / "spice"
        offered = channels(f"channelid=webdav,unixsocket={self._entry}")
        self.start(Program("streams, serve", "serve", "--listen", f"unix:{spice}", *offered))
        relay = self.stack.enter_context(
            FaultyRelay(f"spice+unix://{spice}", unix=self.folder / "relay")
        )
        self._network = Network(relay, self.dice, self.tally, _SIZE)
        wanted = channels(f"channelid=webdav,unixsocket={self.folder / 'echo'}")
        self.start(Program("streams, bridge", relay.uri, *STAYS, *wanted))

    def round(self) -> None:
        if self.dice.random() < _CALM:
            self.calm()
            return
        happening, ends = self._network.any_moment()
        self._troubled |= ends
        wait = self.dice.uniform(0, _EARLY)
        running = self._begin()
        time.sleep(wait)
        happening()
        self._finish(running)
        self._network.forget()

    def calm(self) -> None:
        for _ in range(_BACK):
            if self._finish(self._begin()):
                self._troubled = False
                return
        raise LostError(f"{_BACK} rounds without a fault, and not one brought all")

    def _begin(self) -> list[Task]:
        count = self.dice.randrange(1, _MOST)
        sizes = [self.dice.randrange(_SIZE) for _ in range(count)]
        return [Task(partial(self._ask, size)) for size in sizes]

    def _finish(self, running: list[Task]) -> bool:
        """Waits for the streams of a round; returns whether all were whole."""
        whole = [task.result() for task in running]
        self.tally.rounds += 1
        self.tally.told += not all(whole)
        return all(whole)

    def _ask(self, size: int) -> bool:
        """One stream from beginning to end."""
        with connection(self._entry) as sock:
            sending = Task(partial(_send, sock, size))
            got = Noise(sock).receive(size + 1)
            if got.size < size:
                ended(sock)
            sending.result()
        self.tally.bytes += got.size
        check(got.size <= size, f"{got.size} bytes came back of {size}")
        check(got.digest == poured(got.size), f"something else than the first {got.size} bytes")
        check(got.size == size or self._troubled, f"{got.size} bytes of {size} came back")
        return got.size == size


def _send(sock: socket.socket, size: int) -> None:
    try:
        send_noise(sock, size)
        sock.shutdown(socket.SHUT_WR)
    except OSError:  # nobody is there
        pass
