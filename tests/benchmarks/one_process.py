"""Bridges to many servers in one process, as a program that uses spicebridge would have them.

usage: python one_process.py PORT FOLDER URI...

The sockets are FOLDER/0, FOLDER/1 and so on. It prints a line of JSON when all are ready, and runs
until it is killed.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio

from spicebridge import (
    BridgeSpec,
    BridgeStatus,
    ChannelType,
    ChannelWanted,
    ListeningEndpoint,
    Session,
    Target,
    UnixAddress,
    parse_uri,
    run_bridges,
)


async def main() -> None:
    port, folder, *uris = sys.argv[1:]
    missing = len(uris)

    def ready(target: Target, bridges: Sequence[BridgeStatus], session: Session | None) -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            print('{"ready": true}', flush=True)

    async with anyio.create_task_group() as tasks:
        for number, uri in enumerate(uris):
            path = str(Path(folder) / str(number))
            spec = BridgeSpec(
                name=path,
                channel=ChannelWanted(ChannelType.PORT, port=port),
                endpoint=ListeningEndpoint(path, UnixAddress(path)),
                attach="always",
            )
            tasks.start_soon(partial(run_bridges, parse_uri(uri), [spec], ready=ready))


anyio.run(main)
