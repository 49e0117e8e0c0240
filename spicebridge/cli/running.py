"""Runs something until it is done or a signal asks us to stop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Awaitable, Callable, Sequence

import anyio

from spicebridge import BridgeStatus, Ready, Session, Target, one_error
from spicebridge.cli.notify import Notifier
from spicebridge.cli.output import Output, tell_ready
from spicebridge.cli.signals import StopSignals
from spicebridge.cli.status import StatusPage

log = logging.getLogger("spicebridge")

Action = Callable[[anyio.Event, Ready], Awaitable[None]]
"""Something that ends when the event is set, and says when it is ready."""


async def run_until_signal(
    action: Action,
    output: Output,
    ready_fd: int | None,
    server: str = "",
    notifier: Notifier | None = None,
) -> int:
    """Runs an action; SIGINT, SIGTERM and SIGHUP drain it, a second one ends it at once.

    Args:
        action: what to run.
        output: where its live line goes.
        ready_fd: of --ready-fd.
        server: what the ready line says before the address: whether we listen there.
        notifier: tells the service manager; given where the action tells it something, too.

    Returns:
        The exit code: 0, also after SIGTERM if all was drained; else 128 and the signal's number,
        as a shell has it.
    """
    stop = anyio.Event()
    code = 0
    is_ready = False
    page = StatusPage()
    manager = notifier or Notifier()

    def ready(target: Target, bridges: Sequence[BridgeStatus], session: Session | None) -> None:
        nonlocal is_ready
        page.show(target, bridges, session)
        pairs = ", ".join(f"{bridge.name} to {bridge.end}" for bridge in bridges)
        if is_ready:  # another session, with --reconnect or after a migration
            manager.status("")
        else:
            tell_ready(ready_fd)
            manager.ready(f"{server}{target}: {pairs}" if server else f"bridging {pairs}")
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
        if output.live and not is_ready:
            from spicebridge.cli.live import LiveLine  # here, as Rich costs the start some 25 ms

            tasks.start_soon(LiveLine(output.lines).run, bridges)
        is_ready = True

    async def watch_signals(signals: StopSignals) -> None:
        nonlocal code
        number = await signals.receive()
        code = 0 if number == signal.SIGTERM else 128 + number
        log.info("%s: draining; once more to end at once", number.name)
        manager.stopping("draining")
        stop.set()
        code = 128 + await signals.receive()
        signals.close()
        tasks.cancel_scope.cancel()

    with StopSignals() as signals, one_error():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_signals, signals)
            tasks.start_soon(manager.run)
            await tasks.start(page.run)
            await action(stop, ready)
            tasks.cancel_scope.cancel()
    return code
