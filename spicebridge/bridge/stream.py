"""One stream of a demultiplexed channel: its application, and what that has not taken yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio

from spicebridge.endpoints.base import Application
from spicebridge.protocol.mux import MuxStream


class BridgedStream(MuxStream):
    """A stream of the mux and the application that has it.

    Args:
        client_id: int64.

    Attributes:
        application: who has it; None until there is one.
        pending: bytes that the application has not taken yet.
        down: bytes that it has taken.
        up: bytes that it has sent.
        undelivered: bytes that nobody was there to take.
        draining: whether a task writes `pending`.
        deaf: whether the application takes nothing more.
        over: whether it is to end at once, both ways.
        heard: whether all that the peer has sent has come here: `peer_ended` runs ahead of that.
        gone: whether the other side has gone: nothing goes up any more, what came is delivered.
        why: why it had to end, unless it ended by itself.
        changed: set, and put anew, when the application took something or the peer ended.
        opening: the wait for its application.
    """

    def __init__(self, client_id: int) -> None:
        super().__init__(client_id)
        self.application: Application | None = None
        self.pending = bytearray()
        self.down = self.up = self.undelivered = 0
        self.draining = self.deaf = self.over = self.heard = self.gone = False
        self.why = ""
        self.changed = anyio.Event()
        self.opening = anyio.CancelScope()

    def may_speak(self) -> bool:
        """Whether what its application sends may still go up."""
        return not (self.over or self.gone or self.replaced)

    @property
    def delivered(self) -> bool:
        """Whether the application has all that the peer has sent, and its end of file."""
        return (self.heard or self.gone) and not self.pending

    def stop_listening(self) -> None:
        """Wakes who waits for the application to send something."""
        if self.application is not None:
            self.application.stream.interrupt()

    def note_change(self) -> None:
        """Wakes who waits for `changed`."""
        self.changed.set()
        self.changed = anyio.Event()

    def write_nowait(self, views: Sequence[memoryview | bytearray]) -> int:
        """Gives the application what it takes at once.

        Returns:
            How many bytes of `views` need no further care: all of them once it is `deaf`.
        """
        assert self.application is not None  # noqa: S101 - the caller has looked
        try:
            taken = self.application.stream.write_nowait(views) or 0
        except OSError:  # what it has sent before it went still goes up
            self.deaf = True
            size = sum(map(len, views))
            self.undelivered += size
            return size
        self.down += taken
        return taken

    def push(self, count: Callable[[int], None]) -> bool:
        """Gives the application what it takes of `pending` at once.

        Args:
            count: called with the bytes that it takes.

        Returns:
            Whether that was any.
        """
        before = self.down
        done = self.write_nowait([self.pending])
        if done:
            del self.pending[:done]
            count(self.down - before)
            self.note_change()
        return bool(done)

    async def drain(self, count: Callable[[int], None]) -> None:
        """Gives the application what is pending, then end of file if the peer has ended.

        Args:
            count: called with the bytes that it takes.

        Who starts it has set `draining`, so that no other does.
        """
        assert self.application is not None  # noqa: S101 - the caller has looked
        stream = self.application.stream
        try:
            while self.pending and not (self.over or self.deaf):
                if not self.push(count):
                    await stream.writable()
        except anyio.ClosedResourceError:  # it was ended
            pass
        finally:
            self.draining = False
            self.end_if_delivered()
            self.note_change()

    def end_if_delivered(self) -> None:
        """Gives the application end of file once it has all that came before."""
        if self.application is not None and self.delivered and not self.over:
            try:
                self.application.stream.end()
            except OSError:  # it has gone
                self.deaf = True

    def abort(self, why: str) -> None:
        """Lets go of the application at once."""
        self.over = True
        self.why = self.why or why
        self.opening.cancel()
        if self.application is not None:
            self.application.stream.close()
        self.note_change()
