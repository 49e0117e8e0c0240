"""Fixtures for the tests of bridges."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.bridge.tools import EventLog
from tests.channel.hasty import make_hasty


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own endpoint does not need the moment that libspice-server must be given at the end."""
    make_hasty(monkeypatch, 0.02)


@pytest.fixture
def log() -> Iterator[EventLog]:
    """What is logged meanwhile."""
    logger = logging.getLogger("spicebridge")
    handler = EventLog()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)
