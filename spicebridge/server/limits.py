"""What an endpoint bears from its clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class ServerLimits:
    """What clients of a SPICE endpoint may cost. Channels need no limit: each has one client.

    Attributes:
        logins: connections at once that have not logged in; then one of them has to go, see
            `Lobby`.
        login_time: seconds from the connection to the end of the login, TLS included.
        guess_time: seconds that a wrong password costs whoever sent it, see `Guesses`.
        sessions: at once; more are refused.
        pong_time: seconds that a client may owe the answer to a ping of its main channel before
            its session ends; libspice-server has 30.
    """

    logins: int = 256
    login_time: float = 10.0
    guess_time: float = 1.0
    sessions: int = 256
    pong_time: float = 30.0


DEFAULT_LIMITS: Final = ServerLimits()
