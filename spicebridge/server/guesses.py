"""Wrong passwords cost time, so that nobody finds the right one by trying.

After a wrong one its sender has to wait for the answer, as with sshd. But who guesses need not wait
for that, and may have many connections: so meanwhile no other password of the same origin is looked
at either, right or wrong.
"""

from __future__ import annotations

from typing import Final

import anyio

from spicebridge.protocol.dialogue import Dialogue
from spicebridge.protocol.login import ServerLogin

_MAX_ORIGINS: Final = 4096
"""Origins that are remembered, the last that were wrong; each for `seconds` only."""


class Guesses:
    """Remembers who was wrong a moment ago.

    Args:
        seconds: that a wrong password costs.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[str, float] = {}  # the first to be forgotten first

    async def turn(self, origin: str) -> None:
        """Waits until a password from there may be looked at, or be told wrong."""
        while (rest := self._until.get(origin, 0.0) - anyio.current_time()) > 0:
            await anyio.sleep(rest)

    def wrong(self, origin: str) -> None:
        """Notes that a password from there was wrong."""
        now = anyio.current_time()
        self._until.pop(origin, None)
        while self._until:
            first, until = next(iter(self._until.items()))
            if until > now and len(self._until) < _MAX_ORIGINS:
                break
            del self._until[first]
        self._until[origin] = now + self._seconds


class Attempt:
    """One login of a client, and how far it has come.

    Args:
        login: what it logs in with.

    Attributes:
        mechanism: of that.
        begun: whether what the client says next is its password.
        wrong: whether it was.
    """

    def __init__(self, login: ServerLogin) -> None:
        self.mechanism = login.mechanism
        self.begun = False
        self.wrong = False
        self._login = login

    def steps(self) -> Dialogue[bool]:
        """Those of the login."""
        self.begun = True
        right = yield from self._login.steps()
        self.wrong = not right
        return right
