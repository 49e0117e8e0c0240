"""A relay between a client and a server that fails as it is told to.

Without faults it is transparent: bytes, half-closes and resets are passed on. What goes wrong is
chosen for each connection and each direction when it begins, by byte, or at any moment later on.
It runs in a thread of its own, and waits for nobody.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from .faults import BLOCK, Direction, Fault, Flow, Plan
from .held_port import HeldPort
from .processes import PATIENCE, PeerError

__all__ = ["Connection", "Fault", "FaultyRelay", "Flow", "Plan"]

_DRAINED: Final = 16
"""Reads of what is dropped before a connection is closed."""

_RESET: Final = struct.pack("ii", 1, 0)
"""As SO_LINGER: on, and no seconds."""


class Connection:
    """One connection through a relay.

    Attributes:
        number: of the relay's connections, from 0.
        up: from the client to the server.
        down: from the server to the client.
        closed: whether the relay has closed both of its sides.
    """

    def __init__(
        self, relay: FaultyRelay, number: int, client: socket.socket, server: socket.socket
    ) -> None:
        plan = relay.plan(number)
        self.number = number
        self.up = Direction(client, server, plan.up)
        self.down = Direction(server, client, plan.down, spare=plan.spare)
        self.closed = False
        self._spare = plan.spare
        self._relay = relay
        self._watched: dict[socket.socket, int] = {}

    def fail(self, fault: Fault, *, up: bool = True, down: bool = True) -> None:
        """Has a fault befall it now, in one direction or both, wherever it is."""
        ways = [way for way, chosen in ((self.up, up), (self.down, down)) if chosen]
        self._relay.call(lambda: self._settle([way.fail(fault) for way in ways]))

    def resume(self) -> None:
        """Ends every `STALL` of it, also one that has not come to pass."""

        def go_on() -> None:
            self.up.go_on()
            self.down.go_on()
            self.pass_on()

        self._relay.call(go_on)

    # What the loop does with it

    def begin(self) -> None:
        for way in (self.up, self.down):
            way.source.setblocking(False)
            if way.source.family == socket.AF_INET:
                way.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pass_on()

    def ready(self, sock: socket.socket, events: int) -> None:
        source, sink = (self.up, self.down) if sock is self.up.source else (self.down, self.up)
        if events & selectors.EVENT_READ and source.wants_read:
            source.read()
        if events & selectors.EVENT_WRITE:
            self._settle([sink.pass_on(writable=True)])
        self.pass_on()

    def pass_on(self) -> None:
        if not self.closed:
            self._settle([self.up.pass_on(), self.down.pass_on()])

    def due(self) -> float | None:
        times = [time for way in (self.up, self.down) if (time := way.due()) is not None]
        return min(times, default=None)

    def _settle(self, faults: list[Fault | None]) -> None:
        """Does what the directions could not do alone, and tells the selector what is awaited."""
        if self.closed:
            return
        ways = self.up, self.down
        whole = next(filter(None, faults), None)
        if whole and self._spare:
            self._close_client(whole)
        elif whole:
            self.close(whole)
            return
        if all(way.over and way.ended for way in ways):
            self.close(Fault.CLOSE)
            return
        for source, sink in (ways, reversed(ways)):
            read = selectors.EVENT_READ if source.wants_read else 0
            write = selectors.EVENT_WRITE if sink.wants_write else 0
            self._watch(source.source, read | write)

    def _watch(self, sock: socket.socket, events: int) -> None:
        if (before := self._watched.get(sock, 0)) == events:
            return
        selector = self._relay.selector
        if not events:
            selector.unregister(sock)
        elif before:
            selector.modify(sock, events, self)
        else:
            selector.register(sock, events, self)
        self._watched[sock] = events

    def close(self, fault: Fault) -> None:
        """Closes it, as a relay that ends does, or resets it."""
        self._close_side(self.up.source, fault)
        self._close_side(self.down.source, fault)
        self.closed = True

    def _close_client(self, fault: Fault) -> None:
        self._close_side(self.up.source, fault)
        self.up.ended = self.down.over = True
        self.down.stalled = False
        self.up.tell_end()

    def _close_side(self, sock: socket.socket, fault: Fault) -> None:
        if sock.fileno() < 0:  # it was closed alone
            return
        self._watch(sock, 0)
        if fault is Fault.RESET and sock.family == socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        else:
            _drain(sock)  # closing with unread input would be a reset
        sock.close()


class FaultyRelay:
    """A running relay.

    Args:
        target: the URI of the server: ``spice://127.0.0.1:PORT``, ``spice+tls://127.0.0.1:PORT``
            or ``spice+unix://PATH``.
        plan: says how bytes go on the connection of a number, from 0; it is called in the relay's
            thread when one has come.
        unix: the path of the Unix socket to listen on; else a TCP port of 127.0.0.1.

    Attributes:
        uri: where it listens; that does not change while it is `away`.
        target: as given; it may be changed for the connections to come.
        plan: likewise.
        connections: all that there have been.
        refused: how many clients were let go because the server could not be reached.
    """

    def __init__(
        self,
        target: str,
        plan: Callable[[int], Plan] = lambda number: Plan(),
        *,
        unix: Path | None = None,
    ) -> None:
        self.target = target
        self.plan = plan
        self.connections: list[Connection] = []
        self.refused = 0
        self.selector = selectors.DefaultSelector()
        self._live: list[Connection] = []
        self._unix = unix
        self._port = HeldPort()
        scheme = target.partition(":")[0].removesuffix("+unix")
        self.uri = f"spice+unix://{unix}" if unix else f"{scheme}://127.0.0.1:{self._port.number}"
        self._listener: socket.socket | None = None
        self._calls: deque[Callable[[], object]] = deque()
        self._wake, self._woken = socket.socketpair()
        self._news = threading.Condition()
        self._running = True
        self.selector.register(self._woken, selectors.EVENT_READ)
        self._listen()
        self._thread = threading.Thread(target=self._run, name="faulty relay", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes every connection and ends."""

        def end() -> None:
            self._running = False

        if self._thread.is_alive():
            self.call(end)
            self._thread.join(PATIENCE)

    # What the test does with it

    @property
    def passed_up(self) -> int:
        """Bytes passed on from clients to the server, on all connections."""
        return sum(connection.up.passed for connection in self.connections)

    @property
    def passed_down(self) -> int:
        """Bytes passed on from the server to clients, on all connections."""
        return sum(connection.down.passed for connection in self.connections)

    def fail(self, fault: Fault, *, up: bool = True, down: bool = True) -> None:
        """Has a fault befall every connection that there is now."""
        for connection in self.connections:
            connection.fail(fault, up=up, down=down)

    def go_away(self) -> None:
        """Closes every connection and refuses new ones, at the same address, until `come_back`."""
        self.call(self._leave)

    def come_back(self) -> None:
        """Takes connections again."""
        self.call(self._listen)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Away inside the block."""
        self.go_away()
        yield
        self.come_back()

    def wait(self, condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> None:
        """Waits until something is so, looking whenever something has happened in the relay.

        Raises:
            PeerError: it was not so within `timeout` seconds; `what` says what was not.
        """
        with self._news:
            if not self._news.wait_for(condition, timeout):
                state = [
                    (each.up.passed, each.down.passed, "closed" if each.closed else "")
                    for each in self.connections
                ]
                raise PeerError(f"{what} within {timeout} s; up, down: {state}")

    def wait_connection(self, number: int, timeout: float = PATIENCE) -> Connection:
        """Waits for the connection of a number."""
        self.wait(lambda: len(self.connections) > number, f"no connection {number}", timeout)
        return self.connections[number]

    def call(self, function: Callable[[], object]) -> None:
        """Runs a function in the relay's thread, between two events, and waits until it has."""
        done = threading.Event()

        def run() -> None:
            try:
                function()
            finally:
                done.set()

        self._calls.append(run)
        self._wake.send(b"\0")
        if not done.wait(PATIENCE):
            raise PeerError("the relay does not answer")

    # Its thread

    def _run(self) -> None:
        try:
            while self._running:
                self._turn()
        finally:
            self._leave()
            self.selector.close()
            self._port.close()
            self._wake.close()
            self._woken.close()

    def _turn(self) -> None:
        live = self._live = [each for each in self._live if not each.closed]
        dues = [due for connection in live if (due := connection.due()) is not None]
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
        for key, events in self.selector.select(timeout):
            if isinstance(key.data, Connection):
                if not key.data.closed:
                    assert isinstance(key.fileobj, socket.socket)
                    key.data.ready(key.fileobj, events)
            elif key.fileobj is self._woken:
                self._woken.recv(len(self._calls) + 1)
                while self._calls:
                    self._calls.popleft()()
            elif key.fileobj is self._listener:  # unless a call has closed that meanwhile
                self._accept()
        if dues:
            for connection in live:
                connection.pass_on()
        with self._news:
            self._news.notify_all()

    def _accept(self) -> None:
        assert self._listener is not None
        client, _ = self._listener.accept()
        try:
            server = _connect(self.target)
        except OSError:
            self.refused += 1
            client.close()
            return
        connection = Connection(self, len(self.connections), client, server)
        self.connections.append(connection)
        self._live.append(connection)
        connection.begin()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = _listening(self._unix) if self._unix else self._port.listen()
            self.selector.register(self._listener, selectors.EVENT_READ)

    def _leave(self) -> None:
        for connection in self._live:
            if not connection.closed:
                connection.close(Fault.CLOSE)
        if self._listener is not None:
            self.selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
            if self._unix:
                self._unix.unlink()


def _connect(uri: str) -> socket.socket:
    scheme, _, place = uri.partition("://")
    unix = scheme.endswith("+unix")
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    sock.settimeout(PATIENCE)
    try:
        if unix:
            sock.connect(place)
        else:
            host, _, port = place.partition(":")
            sock.connect((host, int(port)))
    except BaseException:
        sock.close()
        raise
    return sock


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def _drain(sock: socket.socket) -> None:
    """Reads what is there, unless it is endless."""
    try:
        for _ in range(_DRAINED):
            if not sock.recv(BLOCK):
                return
    except OSError:  # there is no more, or the peer has gone
        pass
