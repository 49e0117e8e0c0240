"""A guest that is reset again and again, under traffic."""

from __future__ import annotations

from typing import Final

from tests.peers.guest import Guest
from tests.real.tools import connection
from tests.real.traffic import BLOCK, CountedEcho
from tests.soak.actor import Actor, check
from tests.soak.program import STAYS, Program, channels

_EOF: Final = "com.example.eof"
_KEEP: Final = "com.example.keep"
_WAYS: Final = 2
_LINE: Final = 64


class Rebooting(Actor):
    """One application sees end of file and connects again, another notices but a gap.

    What the guest has taken and not given back goes with its memory; nothing else may be missing,
    and nothing doubled or overtaken.
    """

    name = "rebooting"

    def set_up(self) -> None:
        guest = self.folder / "guest"
        guest.mkdir()
        self._guest = self.stack.enter_context(
            Guest(guest, _EOF, _KEEP, echo=[_EOF, _KEEP], webdav=False, reboots=True)
        )
        self._eof, self._keep = self.folder / "eof", self.folder / "keep"
        specs = channels(
            f"port={_EOF},unixsocket={self._eof}",
            f"port={_KEEP},unixsocket={self._keep},on-close=keep",
        )
        self.start(Program(self.name, self._guest.uri, *STAYS, *specs))

    def round(self) -> None:
        with connection(self._keep) as kept_sock:
            kept = CountedEcho(kept_sock)
            with connection(self._eof) as sock:
                before = CountedEcho(sock)
                before.wait_more()
                kept.wait_more()
                self._guest.reset()
                self.tally.faults += 1
                before.wait_cut()
                kept.give_up()
            with connection(self._eof) as sock:
                after = CountedEcho(sock, before)
                after.wait_more()
                kept.wait_more()
                after.end()
            kept.end()
        check(max(after.torn, kept.torn) <= _WAYS, "more torn lines than a reset makes")
        self.tally.rounds += 1
        self.tally.told += 1
        self.tally.bytes += (after.next + kept.next) * _LINE

    def calm(self) -> None:
        for path in (self._eof, self._keep):
            with connection(path) as sock:
                traffic = CountedEcho(sock)
                traffic.wait_more(4 * BLOCK)
                traffic.end()
            check(not traffic.torn, "torn lines without a reset")
            self.tally.bytes += traffic.next * _LINE
        self.tally.rounds += 1
