"""What every local end has in common."""

from __future__ import annotations

import os

import pytest

from spicebridge.endpoints.base import Application
from spicebridge.transport.stream import Stream
from tests.transport.pairs import connected, read_exactly


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_an_application_has_gone_once_it_has_left_nothing_to_be_sent(kind: str) -> None:
    with connected(kind) as (stream, app):
        application = Application(stream, "x")
        assert not application.gone
        app.send(b"12345")
        await stream.readable()
        assert not application.gone
        if kind == "tcp":  # a closed one looks like one that has ended its sending
            stream.end()
        app.close()
        assert not application.gone
        assert await read_exactly(stream, 5) == b"12345"
        assert await read_exactly(stream, 1) == b""
        assert application.gone


async def test_one_that_has_ended_its_sending_alone_is_there() -> None:
    with connected() as (stream, app):
        app.shutdown(1)
        assert await read_exactly(stream, 1) == b""
        assert not Application(stream, "x").gone


async def test_one_at_pipes_has_gone_with_its_reading_end_and_its_bytes() -> None:
    reader, theirs = os.pipe2(os.O_NONBLOCK)
    other, writer = os.pipe2(os.O_NONBLOCK)
    stream = Stream.of_pair(reader, writer)
    application = Application(stream, "x")
    os.write(theirs, b"123")
    os.close(other)
    left, _ = application.gone, await read_exactly(stream, 3)
    assert (left, application.gone) == (False, True)
    os.close(theirs)
    stream.close()
