"""Runs something until it is done or a signal asks us to stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable, Sequence

import anyio
from anyio.abc import TaskStatus

from spicebridge import BridgeStatus, Ready, Session, Target, one_error
from spicebridge.cli.output import Output, tell_ready
from spicebridge.cli.status import StatusPage

log = logging.getLogger("spicebridge")

Action = Callable[[anyio.Event, Ready], Awaitable[None]]
"""Something that ends when the event is set, and says when it is ready."""


async def run_until_signal(
    action: Action, output: Output, ready_fd: int | None, server: str = ""
) -> int:
    """Runs an action; SIGINT and SIGTERM drain it, a second one ends it at once.

    Args:
        action: what to run.
        output: where its live line goes.
        ready_fd: of --ready-fd.
        server: what the ready line says before the address: whether we listen there.

    Returns:
        The exit code: 0, also after SIGTERM if all was drained; else 128 and the signal's number,
        as a shell has it.
    """
    stop = anyio.Event()
    code = 0
    page = StatusPage()

    def ready(target: Target, bridges: Sequence[BridgeStatus], session: Session | None) -> None:
        page.show(target, bridges, session)
        tell_ready(ready_fd)
        names = ", ".join(f"{bridge.name} at {bridge.end}" for bridge in bridges)
        log.info(
            "ready: %s%s: %s",
            server,
            target,
            names,
            extra={
                "event": "ready",
                "fields": {
                    "address": str(target),
                    "bridges": [bridge.name for bridge in bridges],
                    "ends": [bridge.end for bridge in bridges],
                },
            },
        )
        if output.live:
            from spicebridge.cli.live import LiveLine  # here, as Rich costs the start some 25 ms

            tasks.start_soon(LiveLine(output.lines).run, bridges)

    async def watch_signals(*, task_status: TaskStatus[None]) -> None:
        nonlocal code
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if stop.is_set():
                    code = 128 + number
                    tasks.cancel_scope.cancel()
                    return
                code = 128 + number if number == signal.SIGINT else 0
                log.info("%s: draining; once more to end at once", number.name)
                stop.set()

    with one_error():
        async with anyio.create_task_group() as tasks:
            await tasks.start(watch_signals)
            await tasks.start(page.run)
            await action(stop, ready)
            tasks.cancel_scope.cancel()
    return code
