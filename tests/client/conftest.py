"""Endpoints in these tests are quick to start, and their clients quick to leave."""

from __future__ import annotations

import pytest

from tests.server.serving import make_quick


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    make_quick(monkeypatch)
