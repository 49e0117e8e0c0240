"""The actors."""

from __future__ import annotations

from typing import Final

from tests.soak.actor import Actor
from tests.soak.actors.churn import Churn
from tests.soak.actors.echoing import Echoing, EchoingAlways
from tests.soak.actors.hostile_clients import HostileClients
from tests.soak.actors.lying_servers import LyingServers
from tests.soak.actors.migrating import Migrating
from tests.soak.actors.pouring import Pouring
from tests.soak.actors.rebooting import Rebooting
from tests.soak.actors.streams import Streams
from tests.soak.actors.swallowing import Swallowing
from tests.soak.actors.takeovers import Takeovers

_ALL: Final[tuple[type[Actor], ...]] = (
    Pouring,
    Swallowing,
    Echoing,
    EchoingAlways,
    Streams,
    Churn,
    Rebooting,
    Migrating,
    Takeovers,
    HostileClients,
    LyingServers,
)

ACTORS: Final = {actor.name: actor for actor in _ALL}
"""By their names."""
