"""What may befall a connection through a relay, and one direction of it, which it befalls."""

from __future__ import annotations

import socket
import struct
import termios
import time
from collections import deque
from dataclasses import dataclass
from enum import Enum
from fcntl import ioctl
from typing import Final

BLOCK: Final = 256 * 1024
"""Bytes of one read, and the most that wait to be passed on where nothing is late."""

_LATE: Final = 64 * BLOCK
"""The most that wait where bytes are late."""


class Fault(Enum):
    """What befalls a connection.

    `CLOSE` closes both of its sides, and `RESET` resets them (over Unix sockets, which know no
    reset, it closes them). With `HALF_CLOSE` the receiver reads end of file; what the sender still
    sends is read and dropped, and the other direction goes on. With `STALL` nothing more is read
    or passed on, until `Connection.resume`.
    """

    CLOSE = "close"
    RESET = "reset"
    HALF_CLOSE = "half-close"
    STALL = "stall"


@dataclass(frozen=True)
class Flow:
    """How bytes go in one direction.

    Attributes:
        fault: what happens to them, if anything.
        after: bytes that pass before, exactly so many; 0 for at once.
        piece: the most bytes in one write. Where they are few and the receiver is on a Unix socket,
            the next write waits until it has read them.
        delay: seconds that every byte comes late.
    """

    fault: Fault | None = None
    after: int = 0
    piece: int = BLOCK
    delay: float = 0.0


@dataclass(frozen=True)
class Plan:
    """How bytes go on one connection.

    Attributes:
        up: from the client to the server.
        down: from the server to the client.
        spare: whether the server hears no more of a `CLOSE` or a `RESET` than that the client has
            ended its side, and what it still sends is read and dropped. libspice-server 0.15
            crashes if a connection breaks right behind the ticket.
    """

    up: Flow = Flow()
    down: Flow = Flow()
    spare: bool = False


class Direction:
    """One direction of a connection.

    Attributes:
        passed: bytes that the receiver's kernel has taken.
        stalled: whether a `STALL` holds it at the moment.
        over: whether the receiver has been told the end, or has gone.
    """

    def __init__(
        self, source: socket.socket, sink: socket.socket, flow: Flow, *, spare: bool = False
    ) -> None:
        self.passed = 0
        self.stalled = False
        self.over = False
        self.source, self.sink = source, sink
        self.ended = False  # the source has ended its side, or has gone
        self._flow = flow
        self._fault = flow.fault  # None once it has happened
        self._spare = spare  # the source must not notice that the sink has gone
        self._paced = flow.piece < BLOCK and sink.family == socket.AF_UNIX
        self._waiting: deque[tuple[float, memoryview]] = deque()  # when each is due
        self._size = 0  # of all that waits
        self._full = False  # the receiver's kernel takes nothing more
        self._broken = False  # the source was reset

    # What the loop asks

    @property
    def wants_read(self) -> bool:
        room = self.over or self._size < (_LATE if self._flow.delay else BLOCK)
        return room and not self.stalled and not self.ended

    @property
    def wants_write(self) -> bool:
        return self._full and not self.stalled and not self.over

    def due(self) -> float | None:
        """When there will be something to write, in `time.monotonic`; None if nothing waits, or it
        waits for the receiver."""
        if not self._waiting or self._full or self.stalled or self.over:
            return None
        return self._waiting[0][0]

    # What it does

    def read(self) -> None:
        """Reads once; must be called only when there is something to read."""
        try:
            data = self.source.recv(BLOCK)
        except BlockingIOError:
            return
        except OSError:
            self._broken = True
            data = b""
        if not data:
            self.ended = True
        elif not self.over:
            self._waiting.append((time.monotonic() + self._flow.delay, memoryview(data)))
            self._size += len(data)

    def pass_on(self, *, writable: bool = False) -> Fault | None:
        """Writes what is due, as far as the receiver takes it; returns a fault that must befall
        the whole connection."""
        self._full = self._full and not writable
        while not (self.stalled or self.over):
            if self._fault is not None and self.passed == self._flow.after:
                fault, self._fault = self._fault, None
                if (whole := self.fail(fault)) is not None:
                    return whole
                continue
            if not self._waiting:
                return self._end() if self.ended else None
            if self._full or self._waiting[0][0] > time.monotonic() or not self._taken():
                return None
            self._write()
            if self._flow.piece < BLOCK:
                return None  # others have their turn
        return None

    def fail(self, fault: Fault) -> Fault | None:
        """Has a fault befall it; returns it if it must befall the whole connection."""
        if fault is Fault.STALL:
            self.stalled = True
        elif fault is Fault.HALF_CLOSE:
            self.tell_end()
        else:
            return fault
        return None

    def go_on(self) -> None:
        """Ends a `STALL`, the one that is to come as well."""
        self.stalled = False
        if self._fault is Fault.STALL:
            self._fault = None

    def _write(self) -> None:
        due, data = self._waiting[0]
        size = self._flow.piece
        if self._fault is not None:
            size = min(size, self._flow.after - self.passed)
        try:
            count = self.sink.send(data[:size])
        except BlockingIOError:
            self._full = True
            return
        except OSError:  # the receiver has gone; what it sent before may still be on its way
            self.ended = not self._spare
            self._drop()
            return
        self.passed += count
        self._size -= count
        if count < len(data):
            self._waiting[0] = due, data[count:]
        else:
            self._waiting.popleft()

    def _taken(self) -> bool:
        """Whether the receiver has read what was written before, as far as that can be told."""
        if not self._paced:
            return True
        unread: int = struct.unpack("i", ioctl(self.sink, termios.TIOCOUTQ, bytes(4)))[0]
        return not unread

    def _end(self) -> Fault | None:
        if self._broken:
            return Fault.RESET
        self.tell_end()
        return None

    def tell_end(self) -> None:
        """Tells the receiver the end, and drops what still comes."""
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone already
            pass
        self._drop()

    def _drop(self) -> None:
        self.over = True
        self._waiting.clear()
        self._size = 0
