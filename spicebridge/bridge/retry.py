"""When a server is tried again that has gone away, and when no more."""

from __future__ import annotations

from typing import Final

from spicebridge.errors import TakeoverError

FIRST_DELAY: Final = 0.2
"""Seconds before the first try."""

STEADY: Final = 10.0
"""Seconds after which a session is taken for one that stays: then delays begin anew."""

SOON: Final = 60.0
"""Seconds in which a session that another client takes over is lost soon after it began."""

TAKEOVER_LIMIT: Final = 3
"""How often that may happen, one time after another."""


class Retry:
    """Delays that grow, and a count of takeovers.

    QEMU serves one client, and drops the one before without a word. Two clients that both come
    back at once would throw each other out for ever. What tells a takeover from a server that was
    restarted: an end of file, soon, and a server that is there at the first try.

    Args:
        longest: seconds that a delay may have.
        takeover_limit: takeovers, one after another, after which to give up; 0 for never.

    Attributes:
        takeovers: how many there were, one after another.
    """

    def __init__(self, longest: float, takeover_limit: int = TAKEOVER_LIMIT) -> None:
        self._longest = longest
        self._limit = takeover_limit
        self._grown = 0  # delays since a session that stayed
        self._missed = 0  # tries since the last session that found no server
        self._at_once = True  # whether the session came at the first of them
        self.takeovers = 0

    def session_began(self) -> None:
        """There is a session; the tries that it took are over."""
        self._at_once = not self._missed
        self._missed = 0

    def session_lost(self, age: float, *, clean: bool) -> float:
        """Tells when to try again after a session.

        Args:
            age: seconds that it has lived.
            clean: whether it ended with an end of file.

        Returns:
            Seconds to wait.

        Raises:
            TakeoverError: it is the last of too many takeovers.
        """
        self.takeovers = self.takeovers + 1 if clean and age < SOON and self._at_once else 0
        if self._limit and self.takeovers >= self._limit:
            raise TakeoverError(
                f"another client has taken the session over {self.takeovers} times, each soon "
                "after it began",
                "end one of the two; a server with SPICE_DEBUG_ALLOW_MC=1 serves several",
            )
        if age >= STEADY:
            self._grown = 0
        return self._longest if self.takeovers > 1 else self._next()

    def failed(self, *, away: bool) -> float:
        """Tells when to try again after a try that brought no session.

        Args:
            away: whether the server was not there.

        Returns:
            Seconds to wait.
        """
        self._missed += away
        return self._next()

    def _next(self) -> float:
        import random  # here, as most servers never go away

        delay = FIRST_DELAY * 2.0 ** min(self._grown, 32)
        self._grown += 1
        return min(self._longest, delay * random.uniform(1, 1.5))
