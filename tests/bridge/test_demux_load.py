"""Many streams that behave as they like, on few ids: each gets its own bytes and no other's."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketStream

from tests.bridge.mux_tools import MuxGuest, receive_some, stage
from tests.bridge.tools import EventLog, read_exactly, until
from tests.protocol.frames import frame

HEADER = 6
"""Bytes that name a stream: its id and how often that has come, two each, and its behaviour."""

BEHAVIOURS = (b"LR", b"SR", b"RS", b"CL", b"SL", b"TH")
"""Listens to the end and then answers; speaks first; answers while it listens; closes early without
a word; speaks slowly; takes little at a time."""


def words(name: bytes, direction: str, most: int = 300_000) -> bytes:
    """What is said in one direction of a stream."""
    dice = random.Random(name + direction.encode())
    return dice.randbytes(int(dice.paretovariate(0.5)) % most)


class Load:
    """Guests and applications that know what the other one says."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self.heard: dict[bytes, bytes] = {}

    async def application(self, app: SocketStream) -> None:
        name = await read_exactly(app, HEADER)
        answer = words(name, "up")
        match name[4:]:
            case b"LR":
                await self._listen(app, name)
                await app.send(answer)
            case b"SR":
                await app.send(answer)
                await app.send_eof()
                await self._listen(app, name)
            case b"RS":
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._listen, app, name)
                    await app.send(answer)
                    await app.send_eof()
            case b"CL":
                await receive_some(app, 1000)
            case b"SL":
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._listen, app, name)
                    for start in range(0, len(answer), 9000):
                        await app.send(answer[start : start + 9000])
                        await anyio.lowlevel.checkpoint()
                    await app.send_eof()
            case _:
                await self._listen(app, name, 3000)
                await app.send(answer)

    async def _listen(self, app: SocketStream, name: bytes, size: int = 65536) -> None:
        pieces = []
        while piece := await receive_some(app, size):
            pieces.append(piece)
            if size < 65536:
                await anyio.lowlevel.checkpoint()
        self.heard[name] = b"".join(pieces)

    async def use_id(self, guest: MuxGuest, client_id: int, turns: int) -> None:
        """Opens a stream with this id again as soon as the one before has ended."""
        for turn in range(turns):
            kind = self._dice.choice(BEHAVIOURS)
            name = client_id.to_bytes(2, "big") + turn.to_bytes(2, "big") + kind
            before = len(guest.data(client_id))
            said = words(name, "down")
            rest = memoryview(name + said)
            while rest:
                size = 1 + int(self._dice.paretovariate(0.4)) % 0xFFFF
                await guest.send(frame(client_id, bytes(rest[:size])))
                rest = rest[size:]
            await guest.send(frame(client_id))
            answer = (await guest.until_end(client_id, turn + 1))[before:]
            if kind == b"CL":
                assert answer == b""
                continue
            assert answer == words(name, "up"), name
            await until(lambda: name in self.heard, "it has heard all")  # noqa: B023
            assert self.heard[name] == said, name


@pytest.mark.parametrize("buffer", [1024 * 1024, 5000])
@pytest.mark.parametrize("seed", range(3))
async def test_streams_of_all_kinds_come_and_go_on_a_few_ids(
    short_tmp: Path, log: EventLog, seed: int, buffer: int
) -> None:
    load = Load(seed)
    async with stage(short_tmp, application=load.application, buffer=buffer) as on:
        async with anyio.create_task_group() as tasks:
            for client_id in range(8):
                tasks.start_soon(load.use_id, on.guest, client_id, 12)
        count = on.status.streams
        assert count is not None
        await until(lambda: not count.open, "all have ended")
        assert all(on.guest.ends(client_id) == 12 for client_id in range(8))
    assert not log.find("error")
    assert not log.find("stream-stalled")
    assert not log.find("stream-refused")
