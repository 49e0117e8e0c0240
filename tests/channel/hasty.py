"""Leaves channels soon, where no guest needs a moment."""

from __future__ import annotations

import pytest


def make_hasty(monkeypatch: pytest.MonkeyPatch, settle: float = 0.001) -> None:
    """Waits for guests `settle` seconds, however much they were sent."""
    monkeypatch.setattr("spicebridge.channel.channel.SETTLE_TIME", settle)
    monkeypatch.setattr("spicebridge.channel.untaken.PACE", 1 << 40)
