"""What the raw bridges have in common: libspice-server, a faulty relay, and that they come back."""

from __future__ import annotations

import signal
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final

from tests.peers.faulty_relay import FaultyRelay
from tests.peers.held_port import HeldPort
from tests.peers.libspice import SpiceEndpoint, poured
from tests.real.faults import Received, send_noise
from tests.real.tools import Task, connection
from tests.soak.actor import Actor, check
from tests.soak.network import Network
from tests.soak.program import STAYS, Program, channels
from tests.soak.tally import MIB, LostError

NAME: Final = "com.example.port"
SIZE: Final = 4 * MIB
_BACK: Final = 30
"""Rounds within which all arrives again, once nothing more befalls it."""

_LOOK_EVERY: Final = 0.2
_EARLY: Final = 0.05
"""Seconds in which most of a round is over."""


class Raw(Actor):
    """One port, one application after another.

    Attributes:
        guest: what is behind the port, see `spice_endpoint.c`.
        unix: whether it goes over Unix sockets; else over TCP.
        attach: as in SPEC.
        path: where applications connect.
        server: what is behind the relay now.
        serving: held while one server takes the place of another, or is asked something.
    """

    guest: ClassVar[str]
    unix: ClassVar[bool] = False
    attach: ClassVar[str] = "demand"

    def set_up(self) -> None:
        self.path = self.folder / "s"
        self._port = self.stack.enter_context(HeldPort())
        self._socket = self.folder / "spice" if self.unix else None
        self._troubled = False
        self.serving = threading.Lock()
        self.server = self._started()
        self.stack.callback(lambda: self.server.stop())
        relay = FaultyRelay(self.server.uri, unix=self.folder / "relay" if self.unix else None)
        self.stack.enter_context(relay)
        self._network = Network(relay, self.dice, self.tally, SIZE)
        spec = f"channelid=port,unixsocket={self.path},attach={self.attach}"
        self.start(Program(self.name, relay.uri, *STAYS, *channels(spec)))

    def round(self) -> None:
        """Mostly with a mishap."""
        kind = self.dice.randrange(6)
        if kind == 0:
            self.calm()
        elif kind == 1:
            self._troubled |= self._network.foresee()
            self._run(None)
        elif kind == 2:
            self._troubled = True
            self._run(self._restart)
        else:
            mishap, ends = self._network.any_moment()
            self._troubled |= ends
            self._run(mishap)
        self._network.forget()

    def calm(self) -> None:
        for _ in range(_BACK):
            if self._run(None):
                self._troubled = False
                return
        raise LostError(f"{_BACK} rounds without a fault, and not one brought all")

    def _run(self, mishap: Callable[[], None] | None) -> bool:
        """One application; returns whether all has arrived."""
        done = threading.Event()

        def befall() -> None:
            if not done.wait(self.dice.uniform(0, _EARLY)) and mishap:
                mishap()
            while not done.wait(_LOOK_EVERY):
                self._look_after_server()

        befalling = Task(befall)
        try:
            with connection(self.path) as sock:
                got = self.work(sock)
        finally:
            done.set()
            befalling.result()
        self._look_after_server()
        self.tally.rounds += 1
        self.tally.bytes += got.size
        check(got.digest == poured(got.size), f"something else than the first {got.size} bytes")
        if got.size < SIZE:
            self.tally.told += 1
            check(self._troubled, f"{got.size} bytes and an end, and nothing had befallen it")
        return got.size == SIZE

    def _look_after_server(self) -> None:
        """It may end by itself, see README, Limits."""
        if self.server.popen.poll() is not None:
            self.tally.crashed(self.server)
            self._troubled = True
            self._restart()

    @abstractmethod
    def work(self, sock: socket.socket) -> Received:
        """What an application does; returns what has arrived of `SIZE` bytes of noise."""

    def _started(self) -> SpiceEndpoint:
        if self._socket:
            self._socket.unlink(missing_ok=True)
            return SpiceEndpoint(f"{self.guest}:{NAME}", unix=self._socket, pour=SIZE)
        return SpiceEndpoint(f"{self.guest}:{NAME}", port=self._port, pour=SIZE)

    def _restart(self) -> None:
        """Kills the server, and starts another one."""
        self.tally.faults += 1
        with self.serving:
            self.server.popen.send_signal(signal.SIGKILL)
            self.server.popen.wait()
            time.sleep(self.dice.uniform(0, 0.3))
            server, self.server = self.server, self._started()
            server.stop()


def send_until_told(sock: socket.socket) -> None:
    """Sends all noise, or as much as there is somebody for."""
    try:
        send_noise(sock, SIZE)
    except (BrokenPipeError, ConnectionResetError):
        pass


def ended(sock: socket.socket) -> None:
    """Lets who sends know that nobody reads."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # it knows
        pass
