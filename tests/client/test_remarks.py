"""What a server has to say is logged, but not without end."""

from __future__ import annotations

import logging

import pytest

from spicebridge.client.remarks import Remarks


def test_of_many_remarks_the_first_are_logged_and_the_rest_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    monkeypatch.setattr("spicebridge.client.remarks.time.monotonic", lambda: now)
    caplog.set_level(logging.INFO)
    server = Remarks()
    for number in range(100):
        server.tell(logging.INFO, "the server says: %r", number)
    assert caplog.messages == [f"the server says: {number}" for number in range(10)]
    caplog.clear()
    now += 10.0
    server.tell(logging.WARNING, "the server says: %r", "on")
    server.tell(logging.INFO, "the server says: %r", "and on")
    assert caplog.messages == [
        "the server has said 90 things more, too fast to be read",
        "the server says: 'on'",
        "the server says: 'and on'",
    ]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING", "INFO"]


def test_a_server_that_says_something_now_and_then_is_always_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr("spicebridge.client.remarks.time.monotonic", lambda: now)
    server = Remarks()
    for _ in range(100):
        server.tell(logging.WARNING, "beware")
        now += 1.0
    assert caplog.messages == ["beware"] * 100
