"""QEMU, whose one client we are until another one comes; or it is killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
from collections.abc import Callable

from tests.conftest import EXECUTABLE, PATIENCE
from tests.peers import glib_client
from tests.peers.faulty_relay import FaultyRelay
from tests.peers.processes import PeerError
from tests.peers.qemu import QMP_PORT, Qemu
from tests.peers.qmp_client import QmpClient, QmpError
from tests.real.tools import Task, connection
from tests.soak.actor import Actor, check
from tests.soak.program import STAYS, Program, channels
from tests.soak.tally import MIB, LostError

_BACK = 30
_EARLY = 0.3
_LOOK_EVERY = 0.2


class Takeovers(Actor):
    """QEMU's own monitor is the application's peer; a relay stays where QEMU comes and goes."""

    name = "takeovers"

    def set_up(self) -> None:
        self._path = self.folder / "s"
        self._troubled = False
        self._qemu = Qemu(self.folder)
        self.stack.callback(lambda: self._qemu.stop())
        self._relay = self.stack.enter_context(FaultyRelay(self._qemu.uri))
        spec = f"port={QMP_PORT},unixsocket={self._path}"
        self.start(Program(self.name, self._relay.uri, *STAYS, *channels(spec)))

    def round(self) -> None:
        happening = self.dice.choice((None, self._view, self._list, self._restart))
        if happening is None:
            self.calm()
        else:
            self._troubled = True
            self._run(happening)

    def calm(self) -> None:
        for _ in range(_BACK):
            if self._run(None):
                self._troubled = False
                return
        raise LostError(f"{_BACK} rounds without a fault, and not one brought all")

    def _run(self, happening: Callable[[], object] | None) -> bool:
        done = threading.Event()

        def befall() -> None:
            done.wait(self.dice.uniform(0, _EARLY))
            if happening:
                self.tally.faults += 1
                happening()
            while not done.wait(_LOOK_EVERY):
                self._look_after_qemu()

        befalling = Task(befall)
        try:
            with connection(self._path) as sock:
                whole = self._talk(sock)
        finally:
            done.set()
            befalling.result()
        self._look_after_qemu()
        self.tally.rounds += 1
        self.tally.told += not whole
        return whole

    def _look_after_qemu(self) -> None:
        """It may end by itself, see README, Limits."""
        if self._qemu.process.popen.poll() is not None:
            self.tally.crashed(self._qemu.process)
            self._troubled = True
            self._restart()

    def _talk(self, sock: socket.socket) -> bool:
        try:
            with QmpClient(sock) as client:
                sent, received = client.echo(MIB)
        except TimeoutError:
            raise
        except (OSError, QmpError, json.JSONDecodeError) as error:
            check(self._troubled, f"{error!r}, and nothing had befallen it")
            return False
        check(sent == received, "something else came back than what was sent")
        self.tally.bytes += MIB
        return True

    def _view(self) -> None:
        """A viewer comes, and goes again."""
        try:
            glib_client.list_channels(self._qemu.uri)
        except PeerError:  # the bridge has taken the session back meanwhile
            pass

    def _list(self) -> None:
        """As `spicebridge list` does."""
        subprocess.run(
            [EXECUTABLE, "list", self._qemu.uri],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,  # the bridge may take the session back meanwhile
            timeout=PATIENCE,
        )

    def _restart(self) -> None:
        self._qemu.process.popen.send_signal(signal.SIGKILL)
        self._qemu.stop()
        self._qemu = Qemu(self.folder)
        self._relay.target = self._qemu.uri
