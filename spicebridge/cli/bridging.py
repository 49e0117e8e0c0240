"""What ``spicebridge`` does when no other command is named: it bridges channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import anyio

from spicebridge import CONNECT_TIMEOUT, TAKEOVER_LIMIT, StdioEndpoint, UsageError, run_bridges
from spicebridge.cli.descriptors import make_room_for
from spicebridge.cli.log import LogFormat
from spicebridge.cli.notify import Notifier
from spicebridge.cli.output import Output, set_up_output
from spicebridge.cli.password import GivenPassword, with_password
from spicebridge.cli.running import run_until_signal
from spicebridge.cli.spec import parse_custom_channel, share_channel
from spicebridge.cli.target import ReachOptions, server_target

if TYPE_CHECKING:
    from pathlib import Path

    from spicebridge import BridgeSpec, Ready, Target


RECONNECT_MAX: Final = 30.0
"""Seconds that ``--reconnect`` without a value stands for."""


@dataclass(frozen=True)
class BridgeOptions:
    """What a command line that bridges says; None or empty where it says nothing.

    Attributes are called as the options are; `reach` has those of the way to the server.
    """

    uri: str | None = None
    custom_channel: Sequence[str] = ()
    share: str | None = None
    password_file: Path | None = None
    password_command: str | None = None
    reach: ReachOptions = field(default_factory=ReachOptions)
    connect_timeout: float = CONNECT_TIMEOUT
    reconnect: float | None = None
    takeover_limit: int = TAKEOVER_LIMIT
    idle_timeout: float | None = None
    ready_fd: int | None = None
    log_format: LogFormat = LogFormat.TEXT
    verbose: int = 0
    quiet: bool = False


def bridge(options: BridgeOptions) -> int:
    """Bridges until all is done or a signal comes; returns the exit code.

    Raises:
        SpicebridgeError: what went wrong, see `errors`.
    """
    log_options = options.verbose, options.quiet, options.log_format
    set_up_output(*log_options)  # for what is wrong with the specifications
    password = GivenPassword(options.password_file, options.password_command)
    texts = list(options.custom_channel)
    if options.share is not None:
        texts.append(share_channel(options.share))
    parsed = parse_specs(texts)
    output = set_up_for(parsed, *log_options)
    if not texts:
        raise UsageError(
            "there is nothing to bridge",
            "add --custom-channel unixsocket=/tmp/s,channelid=128, or see spicebridge list",
        )
    for name in ("connect_timeout", "reconnect", "idle_timeout"):
        if not math.isfinite(getattr(options, name) or 0):
            raise UsageError(f"--{name.replace('_', '-')} is not a number of seconds")
    target = server_target(options.uri, options.reach, stdio=any(map(_uses_stdio, parsed)))

    def run(target: Target) -> int:
        notifier = Notifier()
        specs = parse_specs(texts)  # anew: local ends belong to one event loop

        async def action(stop: anyio.Event, ready: Ready) -> None:
            await run_bridges(
                target,
                specs,
                timeout=options.connect_timeout,
                idle_timeout=options.idle_timeout,
                reconnect=options.reconnect,
                takeover_limit=options.takeover_limit,
                renew=password.again,
                stop=stop,
                ready=ready,
                tell=notifier.status,
            )

        return anyio.run(run_until_signal, action, output, options.ready_fd, "", notifier)

    return with_password(target, password, run)


def parse_specs(texts: Sequence[str], *, serving: bool = False) -> list[BridgeSpec]:
    """Reads every ``--custom-channel``, and makes room for what they may open.

    Raises:
        UsageError: see `parse_custom_channel`; or two of them want standard input.
    """
    specs = [parse_custom_channel(text, serving=serving) for text in texts]
    if sum(map(_uses_stdio, specs)) > 1:
        raise UsageError("stdio is asked for twice", "one channel can have it")
    make_room_for(specs)
    return specs


def _uses_stdio(spec: BridgeSpec) -> bool:
    return isinstance(spec.endpoint, StdioEndpoint)


def set_up_for(
    specs: Sequence[BridgeSpec], verbose: int, quiet: bool, log_format: LogFormat
) -> Output:
    """As `set_up_output`: with stdio we stand in a pipeline."""
    return set_up_output(verbose, quiet, log_format, filter_like=any(map(_uses_stdio, specs)))
