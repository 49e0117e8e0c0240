"""An application whose turn comes just as the client goes: it waits for the next client."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from spicebridge import ChannelInfo, ListeningEndpoint, UnixAddress, open_session
from spicebridge.bridge.streams import Streams
from spicebridge.bridge.waiting import WaitingRoom
from spicebridge.endpoints.base import Application
from spicebridge.transport.target import Target
from tests.bridge.mux_tools import WEBDAV, Applications, demux, nothing_left
from tests.bridge.tools import bridging, connected, read_exactly, served


async def test_who_is_taken_when_the_client_has_gone_is_served_by_the_next(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, ended = anyio.Event(), anyio.Event()
    take, end_all = WaitingRoom.take, Streams._end_all

    async def take_late(self: WaitingRoom) -> Application:
        application = await take(self)
        taken.set()
        with anyio.CancelScope(shield=True):
            await ended.wait()
        return application

    def end(self: Streams, why: str) -> None:
        end_all(self, why)
        ended.set()

    monkeypatch.setattr(WaitingRoom, "take", take_late)
    monkeypatch.setattr(Streams, "_end_all", end)
    address = UnixAddress(str(short_tmp / "spice"))
    entry = ListeningEndpoint("in", UnixAddress(str(short_tmp / "in")))
    apps = Applications(short_tmp / "app")
    async with nothing_left(), anyio.create_task_group() as tasks:
        await tasks.start(apps.run)
        async with served(address, demux(entry)), connected(short_tmp / "in") as late:
            await late.send(b"late")
            async with open_session(Target(address)) as session:
                channel = await session.open_channel(ChannelInfo(WEBDAV, 0))
                await taken.wait()
                await channel.aclose()
            async with bridging(address, demux(short_tmp / "app")):
                app = await apps.next()
                assert await read_exactly(app, 4) == b"late"
                await app.send(b"well")
                assert await read_exactly(late, 4) == b"well"
        await apps.aclose()
        tasks.cancel_scope.cancel()
