"""Finds the channel that a user means among those that the server offers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from fnmatch import fnmatchcase

from spicebridge.bridge.spec import ChannelWanted
from spicebridge.client.session import ChannelInfo, Session
from spicebridge.errors import ChannelBusyError, ChannelNotFoundError, listing
from spicebridge.protocol.constants import channel_type_name

_WILDCARDS = frozenset("*?[")


async def resolve(session: Session, wanted: ChannelWanted) -> ChannelInfo:
    """Finds a channel.

    Raises:
        ChannelNotFoundError: none, or more than one, is meant; it lists what is offered.
        ChannelBusyError: it may be a port that another client holds, which cannot be named.
    """
    if wanted.port is not None:
        return await _by_name(session, wanted.port)
    ids = [each.id for each in session.channels if each.type == wanted.type]
    name = channel_type_name(wanted.type)
    if not ids:
        raise ChannelNotFoundError(
            f"{session.target} offers no channel of type {name}",
            f"it offers {_names(session.channels)}",
        )
    if wanted.instance is None:
        return ChannelInfo(wanted.type, min(ids))
    if wanted.instance not in ids:
        raise ChannelNotFoundError(
            f"{session.target} offers no instance {wanted.instance} of {name}",
            f"it offers {listing(str(each) for each in sorted(ids))}",
        )
    return ChannelInfo(wanted.type, wanted.instance)


async def _by_name(session: Session, pattern: str) -> ChannelInfo:
    exact = not _WILDCARDS & set(pattern)
    found: dict[ChannelInfo, str] = {}
    names: list[str] = []
    busy: list[str] = []
    async with aclosing(session.ports()) as ports:
        async for info in ports:
            if info.port is None:
                busy.append(info.channel.name)
                continue
            name = info.port.name
            names.append(name)
            if name == pattern or (name and not exact and fnmatchcase(name, pattern)):
                found[info.channel] = name
                if exact:  # no need to disturb the other ports
                    break
    if len(found) == 1:
        return next(iter(found))
    if found:
        raise ChannelNotFoundError(
            f"port={pattern} matches {len(found)} ports of {session.target}",
            f"choose one of {listing(found.values())}",
        )
    offered = f"the ports there are {listing(names) or 'none'}"
    if busy:
        raise ChannelBusyError(
            f"no port of {session.target} that can be named is {pattern}: {offered}, "
            f"and {listing(busy)} in use by another client",
            "close that client",
        )
    raise ChannelNotFoundError(f"{session.target} has no port {pattern}", offered)


def _names(channels: Sequence[ChannelInfo]) -> str:
    return listing(each.name for each in channels)
