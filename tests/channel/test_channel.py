"""A channel on a connection: order, answers, cancellation, and an end that loses nothing."""

from __future__ import annotations

import os
import socket
import struct
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest

from spicebridge.channel import Channel, ChannelClosedError, untaken
from spicebridge.errors import ProtocolError, SessionLostError
from spicebridge.protocol.constants import (
    MAX_DATA,
    MAX_STORED,
    SEND_DATA,
    Msg,
    MsgC,
    PortEventType,
    SpicevmcCap,
)
from spicebridge.protocol.events import Ack, AckSync, Pong, PortEvent
from tests.channel.hasty import make_hasty
from tests.protocol.wire import message, say, say_data
from tests.transport.pairs import settled, until
from tests.transport.peer import PING, SMALL, Peer, copied, linked, ping, with_answers_waiting

BOTH_HEADERS = pytest.mark.parametrize("mini", [True, False], ids=["mini", "full"])


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No guest here needs a moment before a channel is left."""
    make_hasty(monkeypatch)


async def receive_all(channel: Channel) -> None:
    while await channel.receive() is not None:
        pass


# Receiving


@BOTH_HEADERS
async def test_data_and_events_come_in_the_order_of_the_peer(mini: bool) -> None:
    with linked(mini=mini) as (channel, peer):
        opened = say(peer.conversation, Msg.PORT_EVENT, b"\0")
        first, last = say_data(peer.conversation, b"first"), say_data(peer.conversation, b"last")
        peer.says(opened + first + last)
        items = copied(await channel.receive())
        assert items == [PortEvent(PortEventType.OPENED), b"first", b"last"]
        assert channel.name == "port:3"


async def test_read_gives_data_alone_and_nothing_at_the_end() -> None:
    with linked() as (channel, peer):
        peer.says(message(Msg.PORT_EVENT, b"\0") + message(Msg.DATA, b"ab"))
        peer.says(message(Msg.DATA, b"cd"))
        assert await channel.read() == b"abcd"
        peer.says(message(Msg.PORT_EVENT, b"\1"))
        peer.sock.close()
        assert await channel.read() == b""


async def test_the_end_of_the_channel_is_none() -> None:
    with linked() as (channel, peer):
        peer.sock.close()
        assert await channel.receive() is None


async def test_an_end_inside_a_message_is_an_error() -> None:
    with linked() as (channel, peer):
        peer.says(message(Msg.DATA, b"abc")[:-1])
        peer.sock.close()
        assert copied(await channel.receive()) == [b"ab"]
        with pytest.raises(ChannelClosedError, match=r"port:3 was cut: end of the stream at byte"):
            await channel.receive()


async def test_a_broken_link_is_told_as_a_closed_channel() -> None:
    with linked(kind="tcp") as (channel, peer):
        peer.resets()
        with pytest.raises(ChannelClosedError, match="the link of port:3 broke: Connection reset"):
            await channel.receive()
        with pytest.raises(ChannelClosedError, match="the link of port:3 broke: Broken pipe"):
            await channel.send(b"x")
    assert issubclass(ChannelClosedError, SessionLostError)


async def test_a_message_that_is_not_allowed_is_an_error() -> None:
    with linked() as (channel, peer):
        peer.says(struct.pack("<HI", Msg.DATA, MAX_DATA + 1))
        with pytest.raises(ProtocolError, match="SPICEVMC_DATA"):
            await channel.receive()


async def test_a_cancelled_receive_has_lost_nothing() -> None:
    with linked() as (channel, peer):
        for number in range(20):
            whole = message(Msg.DATA, bytes((number,)))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive_all, channel)
                await settled()
                peer.says(whole[:3])
                tasks.cancel_scope.cancel()
            peer.says(whole[3:])
            assert await channel.read() == bytes((number,))


async def test_what_was_held_comes_again_first() -> None:
    with linked() as (channel, peer):
        peer.says_data(b"first")
        items = await channel.receive()
        assert items is not None
        channel.hold(items)
        peer.says_data(b"second")
        assert copied(await channel.receive()) == [b"first"]
        assert await channel.read() == b"second"


# Answers


async def test_pings_are_answered_by_receiving() -> None:
    with linked() as (channel, peer):
        peer.says(message(Msg.PING, struct.pack("<IQ", 7, 99) + bytes(100)))
        assert await channel.receive() == []
        channel.end()
        await peer.hears()
    assert peer.heard == [Pong(7, 99)]


async def test_acks_are_sent_one_a_window() -> None:
    with linked() as (channel, peer):
        peer.says(message(Msg.SET_ACK, struct.pack("<II", 5, 10)))
        await channel.receive()
        for _ in range(25):
            peer.says_data(b"x")
            await channel.receive()
        channel.end()
        await peer.hears()
    assert peer.heard == [AckSync(5), Ack(), Ack()]


@BOTH_HEADERS
async def test_an_answer_never_lands_inside_a_message_of_a_blocked_sender(mini: bool) -> None:
    data = bytes(range(256)) * 1024
    with linked(buffer=SMALL, mini=mini) as (channel, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.send, data)
            tasks.start_soon(receive_all, channel)
            await settled()  # the sender is stuck inside its first DATA
            for number in range(100):
                peer.says(say(peer.conversation, Msg.PING, struct.pack("<IQ", number, 0)))
                await settled()
            await peer.hears(len(data))
            while len(peer.pongs) < 100:
                await anyio.lowlevel.checkpoint()
                peer.listens()
            tasks.cancel_scope.cancel()
    assert peer.data == data
    assert peer.pongs == list(range(100))


async def test_serials_go_up_one_by_one_whatever_is_answered_meanwhile() -> None:
    """With the full header every message has one."""
    wire = bytearray()
    with linked(buffer=SMALL, mini=False) as (channel, peer):
        number = 0
        while not channel._conversation.control:  # until answers wait for room in the kernel
            peer.says(say(peer.conversation, Msg.PING, struct.pack("<IQ", number, 0)))
            await channel.receive()
            number += 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.send, b"data")  # waits behind them
            await settled()
            tasks.start_soon(receive_all, channel)
            peer.says(say(peer.conversation, Msg.PING, struct.pack("<IQ", number, 0)))
            await settled()
            while b"data" not in wire:
                try:
                    wire += os.read(peer.sock.fileno(), 1 << 16)
                except BlockingIOError:
                    await settled()
            tasks.cancel_scope.cancel()
    serials, at = [], 0
    while at + 18 <= len(wire):
        serial, _, size, _ = struct.unpack_from("<QHII", wire, at)
        serials.append(serial)
        at += 18 + size
    assert serials == list(range(1, len(serials) + 1))


async def test_a_receiver_goes_on_while_its_answers_cannot_be_sent() -> None:
    """The peer reads nothing, but sends data and pings: all must come, and no answer be lost."""
    received = bytearray()
    with linked(buffer=SMALL) as (channel, peer):

        async def receive() -> None:
            while len(received) < 600:
                received.extend(await channel.read())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            for number in range(600):
                peer.says(ping(number) + message(Msg.DATA, b"x"))
                while len(received) <= number:
                    await anyio.lowlevel.checkpoint()
        assert received == b"x" * 600
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.hears)
            await channel.flush()
            channel.end()
    assert peer.pongs == list(range(600))


async def test_answers_that_waited_are_sent_while_nothing_comes() -> None:
    with linked(buffer=SMALL) as (channel, peer):
        await with_answers_waiting(channel, peer)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.receive)
            while len(peer.pongs) < 600:
                await anyio.lowlevel.checkpoint()
                peer.listens()
            tasks.cancel_scope.cancel()
    assert peer.pongs == list(range(600))


async def test_a_peer_that_never_reads_its_answers_is_read_no_further() -> None:
    """Memory is bounded: at some point we stop reading rather than queue more answers."""
    with linked(buffer=SMALL) as (channel, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive_all, channel)
            for _ in range(2000):
                try:
                    os.write(peer.sock.fileno(), PING * 50)
                except BlockingIOError:
                    break
                await settled()
            else:
                pytest.fail("it has read everything")
            assert len(channel._conversation.control) < 512 * 1024
            tasks.cancel_scope.cancel()


async def test_data_that_came_before_the_peer_went_is_not_lost_to_an_answer() -> None:
    """The peer has gone, so its PING cannot be answered: what it said before still counts."""
    with linked() as (channel, peer):
        peer.says(message(Msg.DATA, b"first") + PING + message(Msg.DATA, b"second"))
        peer.sock.close()
        assert await channel.read() == b"firstsecond"
        assert await channel.read() == b""


async def test_pings_after_our_end_do_not_break_the_channel() -> None:
    """Who has ended its sending side cannot answer, and goes on receiving all the same."""
    with linked() as (channel, peer):
        channel.end()
        for data in (b"first", b"second"):
            peer.says(message(Msg.DATA, data) + PING)
            assert await channel.read() == data
        peer.sock.close()
        assert await channel.receive() is None


async def test_a_receiver_whose_answers_nobody_takes_any_more_goes_on() -> None:
    """It waits for input, and for room for its answers; then the peer wants none of them."""
    received: list[bytes] = []
    with linked(buffer=SMALL) as (channel, peer):
        await with_answers_waiting(channel, peer)

        async def receive() -> None:
            received.append(await channel.read())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await settled()
            peer.sock.shutdown(socket.SHUT_RD)
            while peer.sock.recv(1 << 16):  # makes room: the answers meet a closed door
                pass
            await settled()
            peer.says(message(Msg.DATA, b"still here"))
    assert received == [b"still here"]


# Sending


@BOTH_HEADERS
@pytest.mark.parametrize("size", [0, 1, SEND_DATA, SEND_DATA + 1, 1_000_000])
async def test_bytes_of_any_size_arrive_whole(size: int, mini: bool) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    with linked(mini=mini) as (channel, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.hears)
            await channel.send(data)
            channel.end()
    assert peer.data == data


async def test_a_payload_is_sent_from_the_one_buffer() -> None:
    with linked() as (channel, peer):
        channel.payload_buffer()[:5] = b"hello"
        await channel.send_payload(5)
        assert peer.sock.recv(100) == message(Msg.DATA, b"hello")


async def test_a_message_that_is_no_data_is_sent_at_once() -> None:
    with linked() as (channel, peer):
        await channel.send_message(MsgC.PORT_EVENT, b"\0")
        assert peer.sock.recv(100) == message(MsgC.PORT_EVENT, b"\0")


@pytest.mark.parametrize(("kind", "buffer"), [("unix", SMALL), ("tcp", 0)])
async def test_both_ways_at_the_same_time(kind: str, buffer: int) -> None:
    up, down = bytes(range(256)) * 2000, bytes(range(255, -1, -1)) * 2000
    received = bytearray()
    with linked(kind=kind, buffer=buffer) as (channel, peer):
        said = [down[at : at + 5000] for at in range(0, len(down), 5000)]
        stream = b"".join(say_data(peer.conversation, each) + PING for each in said)

        async def receive() -> None:
            while len(received) < len(down):
                received.extend(await channel.read())
            await sent.wait()
            await channel.flush()
            channel.end()

        async def send() -> None:
            await channel.send(up)
            sent.set()

        sent = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for each in (receive, send, peer.hears):
                tasks.start_soon(each)
            await peer.pours(stream)
    assert peer.data == up
    assert received == down
    assert len(peer.pongs) == len(said)


# Cancelling a sender


async def cancelled_in_the_middle(channel: Channel) -> None:
    """Sends a DATA that does not fit into the kernel, and gives up."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.send, bytes(SEND_DATA))
        await settled()
        tasks.cancel_scope.cancel()


async def test_a_send_that_was_cancelled_inside_a_message_makes_the_channel_unusable() -> None:
    with linked(buffer=SMALL) as (channel, _):
        assert channel.usable
        await cancelled_in_the_middle(channel)
        assert not channel.usable


async def test_no_answer_follows_a_torn_message_and_receiving_goes_on() -> None:
    with linked(buffer=SMALL) as (channel, peer):
        await cancelled_in_the_middle(channel)
        peer.says(PING + message(Msg.DATA, b"still"))
        assert await channel.read() == b"still"
        channel.end()
        with pytest.raises(ProtocolError, match="end of the stream"):
            await peer.hears()
    assert peer.pongs == []
    assert not peer.data.strip(b"\0")


async def test_nothing_can_be_sent_behind_a_torn_message() -> None:
    """It would be taken for the rest of that one."""
    with linked(buffer=SMALL) as (channel, peer):
        await cancelled_in_the_middle(channel)
        while peer.listens():
            pass
        with pytest.raises(ChannelClosedError):
            await channel.send(b"not this")
        channel.end()
        with pytest.raises(ProtocolError, match="end of the stream"):
            await peer.hears()
    assert not peer.data.strip(b"\0")


async def test_a_flush_that_was_cancelled_goes_on_where_it_stopped() -> None:
    with linked(buffer=SMALL) as (channel, peer):
        await with_answers_waiting(channel, peer)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.flush)
            await settled()
            tasks.cancel_scope.cancel()
        assert channel.usable
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.hears)
            await channel.send(b"data")
            channel.end()
    assert peer.pongs == list(range(600))
    assert peer.heard[-1] == b"data"


# Closing


@pytest.mark.parametrize("after", [b"", PING], ids=["data", "data and pings"])
async def test_closing_with_unread_input_loses_nothing_of_what_was_sent(after: bytes) -> None:
    """A plain close would reset the connection, and what the peer has no room for yet be lost."""
    data = bytes(range(256)) * 400

    async def finish(peer: Peer) -> None:
        await peer.pours((message(Msg.DATA, bytes(1000)) + after) * 500)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        await peer.hears_and_closes()

    with linked(kind="tcp") as (channel, peer):
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
        await channel.send(data)
        peer.says((message(Msg.DATA, bytes(1000)) + after) * 20)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.aclose)
            await until(lambda: not channel.usable)
            tasks.start_soon(finish, peer)
    assert peer.data == data


async def test_a_context_manager_closes() -> None:
    with linked() as (channel, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.hears_and_closes)
            async with channel:
                await channel.send(b"x")
            assert not channel.usable
    assert peer.data == b"x"


async def test_a_peer_that_does_not_end_its_side_is_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spicebridge.channel.channel.CLOSE_TIMEOUT", 0.01)
    with linked() as (channel, peer):
        await channel.aclose()
        assert peer.sock.recv(1) == b""
        with pytest.raises(BrokenPipeError):
            peer.says(b"x")


async def test_a_peer_that_pours_is_not_waited_for_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spicebridge.channel.channel.CLOSE_TIMEOUT", 0.01)
    with linked() as (channel, peer):

        async def pour() -> None:
            while await peer.pours(message(Msg.DATA, bytes(1000)) * 10):
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pour)
            await channel.aclose()


async def test_closing_is_not_cut_short_by_a_cancellation() -> None:
    with linked() as (channel, peer):

        async def finish() -> None:
            with anyio.CancelScope(shield=True):
                await peer.hears_and_closes()

        await channel.send(b"x")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.aclose)
            tasks.start_soon(finish)
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert peer.data == b"x"


async def test_closing_a_broken_channel_is_no_error() -> None:
    with linked(kind="tcp") as (channel, peer):
        peer.resets()
        await channel.aclose()


async def test_aborting_closes_at_once() -> None:
    with linked() as (channel, peer):
        channel.abort()
        assert peer.sock.recv(1) == b""


@pytest.mark.parametrize("first", ["abort", "aclose"])
async def test_closing_again_never_touches_who_has_the_descriptor_now(first: str) -> None:
    with linked() as (channel, peer):
        number = channel._wire.reader  # type: ignore[attr-defined]
        peer.sock.shutdown(socket.SHUT_WR)
        if first == "abort":
            channel.abort()
        else:
            await channel.aclose()
        stranger, other = socket.socketpair()
        with stranger, other:
            at, far = (stranger, other) if stranger.fileno() == number else (other, stranger)
            assert at.fileno() == number
            for sock in (at, far):
                sock.settimeout(1)
            far.send(message(Msg.DATA, b"not for us"))
            far.shutdown(socket.SHUT_WR)
            await channel.aclose()
            assert at.recv(100) == message(Msg.DATA, b"not for us")


# What libspice-server keeps for the guest, should we go


def kinds(said: bytes) -> list[int]:
    """The types of messages with the small header."""
    found = []
    while said:
        kind, size = struct.unpack_from("<HI", said)
        found.append(kind)
        said = said[6 + size :]
    return found


async def test_a_little_is_sent_so_that_libspice_server_keeps_it() -> None:
    with linked(caps={SpicevmcCap.DATA_COMPRESS_LZ4}) as (channel, peer):
        for _ in range(66):
            await channel.send(b"x")
        said = kinds(peer.listens() or b"")
        assert said == [Msg.COMPRESSED_DATA] * 64 + [Msg.DATA, Msg.COMPRESSED_DATA]


async def test_much_is_not() -> None:
    with linked(caps={SpicevmcCap.DATA_COMPRESS_LZ4}) as (channel, peer):
        for size in (MAX_STORED, MAX_STORED + 1, 1):
            await channel.send(bytes(size))
        said = kinds(peer.listens() or b"")
        assert said == [Msg.COMPRESSED_DATA, Msg.DATA, Msg.COMPRESSED_DATA]


async def test_the_guest_has_its_time_from_when_the_last_of_it_went(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(untaken, "time", SimpleNamespace(monotonic=lambda: now))
    with linked(buffer=SMALL) as (channel, peer):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(channel.send, bytes(SEND_DATA))
            await until(lambda: not channel.usable)
            now += 10
            await peer.hears(SEND_DATA)
        assert channel._untaken.active == now


async def test_nor_is_a_little_to_a_server_that_knows_no_lz4() -> None:
    with linked() as (channel, peer):
        await channel.send(b"x")
        assert peer.listens() == message(Msg.DATA, b"x")
