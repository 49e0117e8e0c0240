"""Traffic through a bridge that goes on while something befalls the guest, and is checked."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import PATIENCE
from tests.real.tools import connection

BLOCK = 16 * 1024
PAUSE = 0.005
"""Seconds between two blocks: never without traffic, but what else runs has its share, too."""

WINDOW = 16 * BLOCK
"""What is on its way to the guest and back: when a machine stops for which 128 messages of ours
wait, its server does not read that we are ready to go, and no client gets over it."""

_LINE = 64
"""With its end."""

_DIGITS = 7


class Echo:
    """Random bytes that go to an echo and come back as they were, in a thread each way."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._expected = bytearray()
        self._news = threading.Condition()
        self._received = self._under_way = 0
        self._ending = self._sent_all = self._cut = False
        self._failure: Exception | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(run,), daemon=True)
            for run in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    def wait_more(self, size: int = WINDOW) -> None:
        """Wait until `size` more bytes have come back."""
        with self._news:
            until = self._received + size
            self._wait(lambda: self._received >= until)

    def give_up(self) -> None:
        """Do not wait any more for what is under way."""
        with self._news:
            self._under_way = 0
            self._news.notify_all()

    def end(self) -> None:
        """Send no more; all that was sent has to come back."""
        self._ending = True
        self._join()
        assert not self._cut, "end of file"

    def wait_cut(self) -> None:
        """Wait for end of file, wherever it comes: all before it has to be right."""
        with self._news:
            self._wait(lambda: self._cut)
        self._join()

    def block(self) -> bytes:
        """The next to send."""
        block = os.urandom(BLOCK)
        self._expected += block
        return block

    def came(self, data: bytes) -> None:
        """Check what has come back."""
        assert self._expected.startswith(data), f"wrong at byte {self._received} or behind it"
        del self._expected[: len(data)]

    def all_came(self) -> bool:
        """Whether all that was sent has come back."""
        return not self._expected

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
        with self._news:
            self._wait(lambda: not any(thread.is_alive() for thread in self._threads))

    def _wait(self, condition: Callable[[], bool]) -> None:
        def over() -> bool:
            return self._failure is not None or condition() or self._cut

        self._news.wait_for(over, PATIENCE)
        if self._failure:
            raise self._failure
        assert condition(), f"{self._under_way} bytes did not come back; end of file: {self._cut}"

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001 - raised by who waits
            with self._news:
                self._failure = self._failure or error
                self._news.notify_all()

    def _send(self) -> None:
        while not self._sent_all:
            last = self._ending  # so that something comes back after the end is known
            with self._news:
                self._news.wait_for(lambda: self._cut or self._under_way <= WINDOW - BLOCK)
                self._under_way += BLOCK
            block = self.block()
            self._sent_all = last
            time.sleep(PAUSE)
            try:
                self._sock.sendall(block)
            except (BrokenPipeError, ConnectionResetError):
                return  # whether that is right is seen at the other end
            if self._cut:
                return

    def _receive(self) -> None:
        while not (self._sent_all and self.all_came()):
            data = self._sock.recv(65536)
            with self._news:
                if data:
                    self.came(data)
                    self._received += len(data)
                    self._under_way = max(0, self._under_way - len(data))
                self._cut = not data
                self._news.notify_all()
            if self._cut:
                self._sock.shutdown(socket.SHUT_RDWR)  # nobody takes what is sent
                return


class CountedEcho(Echo):
    """Numbered lines, some of which may be lost on the way; none is doubled or overtaken.

    Args:
        sock: as for `Echo`.
        before: what has run over an earlier connection, and goes on here: what comes late from
            there is not told from what is sent here, and is not to come twice either.

    Attributes:
        next: the number of the next to be sent.
        seen: of the last that has come back.
        torn: how many lines came back in parts.
    """

    def __init__(self, sock: socket.socket, before: CountedEcho | None = None) -> None:
        self.next: int = before.next if before else 0
        self.seen: int = before.seen if before else -1
        self.torn: int = before.torn if before else 0
        self._part = b""
        super().__init__(sock)

    def block(self) -> bytes:
        """Some lines."""
        first, self.next = self.next, self.next + BLOCK // _LINE
        return b"".join(b"%b\n" % _line(number) for number in range(first, self.next))

    def came(self, data: bytes) -> None:
        """Check that whole lines are in order."""
        *lines, self._part = (self._part + data).split(b"\n")
        for line in lines:
            if line[:_DIGITS].isdigit() and line == _line(number := int(line[:_DIGITS])):
                assert number > self.seen, f"line {number} behind line {self.seen}"
                self.seen = number
            else:
                self.torn += 1

    def all_came(self) -> bool:
        """Whether the last line has come back."""
        return self.seen == self.next - 1


def _line(number: int) -> bytes:
    """Its number at both ends, so that a line of two parts is told from a whole one."""
    digits = b"%0*d" % (_DIGITS, number)
    return digits + digits.rjust(_LINE - _DIGITS - 1)


@contextmanager
def echo(path: Path) -> Iterator[Echo]:
    """Traffic over one connection to a bridge's socket, all of which has to come back."""
    with connection(path) as sock:
        running = Echo(sock)
        yield running
        running.end()
