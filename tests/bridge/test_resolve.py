"""Which of the channels on offer is meant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest

from spicebridge import (
    ChannelBusyError,
    ChannelInfo,
    ChannelNotFoundError,
    ChannelWanted,
    PortInfo,
    PortInit,
    Session,
    UnixAddress,
)
from spicebridge.bridge.resolve import resolve


class Offered:
    """A session that offers channels; None is a port that another client holds."""

    def __init__(self, *channels: tuple[int, int], ports: dict[int, str | None]) -> None:
        self.target = UnixAddress("/tmp/spice")
        self._ports = ports
        self.asked: list[int] = []
        self.channels = tuple(
            ChannelInfo(*each) for each in sorted([*channels, *[(10, n) for n in ports]])
        )

    async def ports(self) -> AsyncIterator[PortInfo]:
        for number, name in self._ports.items():
            self.asked.append(number)
            yield PortInfo(ChannelInfo(10, number), None if name is None else PortInit(name, True))


async def found(offered: Offered, wanted: ChannelWanted) -> tuple[int, int]:
    channel = await resolve(cast("Session", offered), wanted)
    return channel.type, channel.id


SOME = {0: "org.qemu.monitor.hmp.0", 1: "org.qemu.monitor.qmp.0", 2: "org.spice-space.stream.0"}


async def test_without_an_instance_it_is_the_lowest() -> None:
    offered = Offered((9, 3), (9, 1), (9, 2), (128, 0), ports={})
    assert await found(offered, ChannelWanted(9)) == (9, 1)


async def test_an_instance_is_taken_at_its_word() -> None:
    offered = Offered((9, 3), (9, 1), ports={})
    assert await found(offered, ChannelWanted(9, 3)) == (9, 3)


async def test_a_type_that_is_not_offered_lists_what_is() -> None:
    with pytest.raises(ChannelNotFoundError, match="no channel of type 128; it offers usbredir:1"):
        await found(Offered((9, 1), ports={}), ChannelWanted(128))


async def test_an_instance_that_is_not_offered_lists_which_are() -> None:
    with pytest.raises(ChannelNotFoundError, match="no instance 0 of usbredir; it offers 1, 3"):
        await found(Offered((9, 3), (9, 1), ports={}), ChannelWanted(9, 0))


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        ("org.qemu.monitor.hmp.0", 0),
        ("*qmp*", 1),
        ("org.*.stream.?", 2),
        ("org.qemu.monitor.[h]mp.0", 0),
        ("org.qemu.monitor.[!h]mp.0", 1),
    ],
)
async def test_a_port_by_its_name_or_a_wildcard_that_matches_one(pattern: str, number: int) -> None:
    assert await found(Offered(ports={**SOME}), ChannelWanted(10, port=pattern)) == (10, number)


@pytest.mark.parametrize("pattern", ["hmp", "*.hmp", "ORG.qemu.monitor.hmp.0", "org.qemu.*.1", ""])
async def test_a_wildcard_that_matches_none_lists_the_ports(pattern: str) -> None:
    with pytest.raises(ChannelNotFoundError) as refused:
        await found(Offered(ports={**SOME}), ChannelWanted(10, port=pattern))
    assert all(name in str(refused.value) for name in SOME.values())


async def test_a_wildcard_that_matches_two_lists_those() -> None:
    with pytest.raises(ChannelNotFoundError, match="matches 2 ports") as refused:
        await found(Offered(ports={**SOME}), ChannelWanted(10, port="org.qemu.*"))
    assert SOME[0] in str(refused.value)
    assert SOME[1] in str(refused.value)
    assert SOME[2] not in str(refused.value)


async def test_two_ports_of_the_same_name_are_told_apart_by_no_name() -> None:
    """The first is taken, as QEMU's own tools do: the name is found, no other port disturbed."""
    offered = Offered(ports={0: "twin", 1: "twin"})
    assert await found(offered, ChannelWanted(10, port="twin")) == (10, 0)


async def test_a_name_in_full_disturbs_no_further_port() -> None:
    offered = Offered(ports={**SOME})
    await found(offered, ChannelWanted(10, port=SOME[1]))
    assert offered.asked == [0, 1]


async def test_a_name_with_wildcards_in_it_is_found_by_itself() -> None:
    offered = Offered(ports={0: "a[0]", 1: "b"})
    assert await found(offered, ChannelWanted(10, port="a[0]")) == (10, 0)


async def test_a_server_without_ports() -> None:
    with pytest.raises(ChannelNotFoundError, match="no port x; the ports there are none"):
        await found(Offered((9, 0), ports={}), ChannelWanted(10, port="x"))


async def test_a_port_that_cannot_be_named_may_be_the_one() -> None:
    with pytest.raises(ChannelBusyError, match="port:1 in use by another client"):
        await found(Offered(ports={0: "a", 1: None}), ChannelWanted(10, port="b"))


async def test_a_port_that_cannot_be_named_is_no_trouble_if_another_is_meant() -> None:
    offered = Offered(ports={0: None, 1: "b"})
    assert await found(offered, ChannelWanted(10, port="b")) == (10, 1)


@pytest.mark.parametrize("pattern", ["*", "?*", "[!x]*"])
async def test_a_channel_without_a_name_is_matched_by_no_wildcard(pattern: str) -> None:
    """User-defined channels of our own endpoint tell a state, but no name."""
    offered = Offered(ports={0: "", 1: "named"})
    assert await found(offered, ChannelWanted(10, port=pattern)) == (10, 1)
