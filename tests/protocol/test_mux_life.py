"""A stream lives from the first data of its id until both sides have ended it, and no longer."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spicebridge.protocol import mux as module
from spicebridge.protocol.mux import FORGET_AFTER, Mux, MuxStream
from tests.protocol.frames import HEADER, append, feed, frame, mux

ids = st.sampled_from([1, 0, -(2**63)])  # few, so that they come again
arriving = st.integers(1, 30) | st.just(1 << 20)


class Life:
    """What a stream must be.

    Attributes:
        stream: the one that the mux made for it, once it did.
    """

    def __init__(self, client_id: int) -> None:
        self.id = client_id
        self.stream: MuxStream | None = None
        self.peer_ended = self.ended = self.replaced = False
        self.spoke = 0.0  # when its last data arrived


class OnTheWire:
    """A frame that the peer has sent; `place` is how far it was delivered."""

    def __init__(self, client_id: int, data: bytes) -> None:
        self.id = client_id
        self.data = data
        self.place = 0
        self.receiver: Life | None = None
        self.dropped = 0


class Guest(RuleBasedStateMachine):
    """A guest that opens, ends and uses ids again as it likes, and we, who end when we like.

    What must come of it is found byte by byte: slow, but plain. All data of a stream of the guest
    are one number of its own again and again, so that it shows where they went.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[MuxStream] = []
        self.mux = Mux(self._made, accepts=True)
        self.now = 0.0
        # the guest
        self.speaking: dict[int, int] = {}  # id to the number of its stream
        self.numbers = 0
        self.wire: list[OnTheWire] = []
        # what must be
        self.live: dict[int, Life] = {}
        self.lives: list[Life] = []
        self.heard: dict[int, float] = {}  # ids that we alone have ended
        self.dropped_frames = self.dropped = 0
        self.received: dict[MuxStream, bytes] = {}

    def _made(self, client_id: int) -> MuxStream:
        self.made.append(MuxStream(client_id))
        return self.made[-1]

    # The guest

    @rule(client_id=ids, count=st.integers(1, 4), arrive=arriving)
    def guest_speaks(self, client_id: int, count: int, arrive: int) -> None:
        self._speak(client_id, count)
        self._arrive(arrive)

    @rule(client_id=ids, arrive=arriving)
    def guest_ends(self, client_id: int, arrive: int) -> None:
        self._guest_ends(client_id)
        self._arrive(arrive)

    @rule(client_id=ids, count=st.integers(1, 4), arrive=arriving)
    def guest_uses_an_id_again_at_once(self, client_id: int, count: int, arrive: int) -> None:
        self._guest_ends(client_id)
        self._speak(client_id, count)
        self._arrive(arrive)

    def _speak(self, client_id: int, count: int) -> None:
        if client_id not in self.speaking:
            self.numbers += 1
            self.speaking[client_id] = self.numbers
        data = self.speaking[client_id].to_bytes(2, "little") * count
        self.wire.append(OnTheWire(client_id, data))

    def _guest_ends(self, client_id: int) -> None:
        self.speaking.pop(client_id, None)
        self.wire.append(OnTheWire(client_id, b""))

    @rule(client_id=ids)
    def guest_loses_a_program(self, client_id: int) -> None:
        """Its id may be used again without an end, but not before the old one is forgotten."""
        silent = self.now - self.heard.get(client_id, self.now) >= FORGET_AFTER
        if silent and not any(each.id == client_id for each in self.wire):
            self.speaking.pop(client_id, None)

    @rule()
    def port_closes(self) -> None:
        streams = self.mux.reset()
        assert streams == [life.stream for life in self.live.values()]
        assert self.mux.missing == 0
        self.wire.clear()
        self.speaking.clear()
        self.live.clear()
        self.heard.clear()

    # The wire

    @precondition(lambda self: self.wire)
    @rule(count=arriving)
    def some_bytes_arrive(self, count: int) -> None:
        self._arrive(count)

    def _arrive(self, count: int) -> None:
        data = bytearray()
        expected: list[tuple[Life, bytes | None]] = []
        while self.wire and len(data) < count:
            each = self.wire[0]
            data.append(frame(each.id, each.data)[each.place])
            each.place += 1
            if each.place == HEADER and not each.data:
                self._must_end(each.id, expected)
            elif each.place > HEADER:
                self._must_take(each, bytes(data[-1:]), expected)
            if each.place == HEADER + len(each.data):
                self.wire.pop(0)

        made = len(self.made)
        given = feed(self.mux, bytes(data), self.now)
        begun = [life for life in self.lives if life.stream is None]
        for life, stream in zip(begun, self.made[made:], strict=True):
            assert stream.id == life.id
            life.stream = stream
        assert given == [(life.stream, data) for life, data in expected]
        for stream, part in given:
            self.received[stream] = self.received.get(stream, b"") + (part or b"")

    def _must_end(self, client_id: int, expected: list[tuple[Life, bytes | None]]) -> None:
        self.heard.pop(client_id, None)
        life = self.live.get(client_id)
        if life is not None and not life.peer_ended:
            life.peer_ended = True
            append(expected, life, None)
            if life.ended:
                del self.live[client_id]

    def _must_take(
        self, each: OnTheWire, byte: bytes, expected: list[tuple[Life, bytes | None]]
    ) -> None:
        if each.place == HEADER + 1:
            each.receiver = self._receiver(each.id)
        if each.receiver is not None and self.live.get(each.id) is each.receiver:
            each.receiver.spoke = self.now
            append(expected, each.receiver, byte)
            return
        self.heard[each.id] = self.now
        self.dropped_frames += not each.dropped
        self.dropped += 1
        each.dropped += 1

    def _receiver(self, client_id: int) -> Life | None:
        life = self.live.get(client_id)
        if life is not None and not life.peer_ended:
            return life
        if self.now - self.heard.get(client_id, float("-inf")) < FORGET_AFTER:
            return None
        self.heard.pop(client_id, None)
        if life is not None:
            life.replaced = True
        self.live[client_id] = life = Life(client_id)
        self.lives.append(life)
        return life

    # We

    @precondition(lambda self: self.lives)
    @rule(data=st.data())
    def we_end(self, data: st.DataObject) -> None:
        self._end(self._one(data))

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), count=st.integers(0, 4), arrive=arriving)
    def we_abandon(self, data: st.DataObject, count: int, arrive: int) -> None:
        """The guest does not know of it, and most often speaks on."""
        life = self._one(data)
        self._end(life)
        assert life.stream is not None
        self.mux.abandon(life.stream)
        if self.live.get(life.id) is life:
            del self.live[life.id]
            self.heard[life.id] = life.spoke
        if count:
            self._speak(life.id, count)
        self._arrive(arrive)

    def _one(self, data: st.DataObject) -> Life:
        """A life, more often than not one that is not over."""
        return data.draw(st.sampled_from([*self.live.values(), *self.lives[-2:]]))

    def _end(self, life: Life) -> None:
        assert life.stream is not None
        there = self.live.get(life.id) is life
        assert self.mux.end(life.stream) == (there and not life.ended)
        if there:
            life.ended = True
            if life.peer_ended:
                del self.live[life.id]

    @rule(seconds=st.sampled_from([1.0, FORGET_AFTER - 1, FORGET_AFTER]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # What holds at any time

    @invariant()
    def streams_are_in_the_state_that_they_must_be_in(self) -> None:
        for life in self.lives:
            stream = life.stream
            assert stream is not None
            assert (stream.peer_ended, stream.ended) == (life.peer_ended, life.ended)
            assert stream.replaced == life.replaced

    @invariant()
    def no_stream_has_bytes_of_another(self) -> None:
        for data in self.received.values():
            number = data[:2]
            assert data == (number * len(data))[: len(data)]

    @invariant()
    def what_is_dropped_is_counted(self) -> None:
        assert self.mux.dropped == self.dropped
        assert self.mux.dropped_frames == self.dropped_frames

    @invariant()
    def nothing_is_kept_that_is_over(self) -> None:
        assert self.mux._streams == {key: life.stream for key, life in self.live.items()}
        fresh = {key for key, at in self.heard.items() if self.now - at < FORGET_AFTER}
        assert fresh <= self.mux._ended.keys() <= self.heard.keys()


TestGuest = Guest.TestCase
TestGuest.settings = settings(max_examples=150, stateful_step_count=50)


# The same, told one by one


def opened(side: Mux[MuxStream], client_id: int, data: bytes = b"x") -> MuxStream:
    """The stream that the peer opens with a frame."""
    ((stream, given),) = feed(side, frame(client_id, data))
    assert given == data
    return stream


def test_the_first_data_of_an_id_opens_a_stream() -> None:
    side = mux()
    stream = opened(side, -5)
    assert stream.id == -5
    assert feed(side, frame(-5, b"more")) == [(stream, b"more")]
    assert feed(side, frame(-6, b"more"))[0][0] is not stream


def test_a_stream_that_the_peer_has_ended_can_still_be_ended_by_us_once() -> None:
    side = mux()
    stream = opened(side, 1)
    assert feed(side, frame(1) + frame(1)) == [(stream, None)]
    assert side.end(stream)
    assert not side.end(stream)


def test_an_id_used_again_at_once_is_another_stream_and_nothing_more_is_sent_for_the_old_one() -> (
    None
):
    side = mux()
    old = opened(side, 1)
    (_, (new, data)) = feed(side, frame(1) + frame(1, b"new"))
    assert new is not old
    assert data == b"new"
    assert (old.replaced, new.replaced) == (True, False)
    assert (old.replaces, new.replaces) == (None, old)
    assert not side.end(old)
    side.abandon(old)
    assert feed(side, frame(1, b"more")) == [(new, b"more")]
    assert side.end(new)


def test_a_stream_that_ended_both_ways_is_not_replaced_by_the_next_with_its_id() -> None:
    side = mux()
    old = opened(side, 1)
    assert side.end(old)
    feed(side, frame(1))
    assert opened(side, 1) is not old
    assert not old.replaced


def test_a_stream_that_we_have_ended_still_gives_what_the_peer_sends() -> None:
    side = mux()
    stream = opened(side, 1)
    assert side.end(stream)
    assert feed(side, frame(1, b"last") + frame(1)) == [(stream, b"last"), (stream, None)]


def abandoned(side: Mux[MuxStream], client_id: int, now: float = 0.0) -> MuxStream:
    """A stream that the peer opened and we take nothing more of."""
    ((stream, _),) = feed(side, frame(client_id, b"x"), now)
    assert side.end(stream)
    side.abandon(stream)
    return stream


def test_data_for_an_abandoned_stream_are_dropped_and_counted_until_the_peer_ends_it() -> None:
    side = mux()
    old = abandoned(side, 1)
    assert feed(side, frame(1, b"12345") + frame(1, b"678"), cuts=[3, 12, 14]) == []
    assert (side.dropped_frames, side.dropped) == (2, 8)
    ((new, data),) = feed(side, frame(1) + frame(1, b"new"))
    assert new is not old
    assert data == b"new"


def test_an_abandoned_id_is_free_again_after_a_time_of_silence_and_not_before() -> None:
    side = mux()
    old = abandoned(side, 1)
    for now in (FORGET_AFTER - 1, 2 * FORGET_AFTER - 2):
        assert feed(side, frame(1, b"still there"), now) == []
    ((new, _),) = feed(side, frame(1, b"new"), 3 * FORGET_AFTER - 2)
    assert new is not old
    assert not side._ended


def test_an_id_that_was_silent_for_long_when_we_abandoned_it_is_free_at_once() -> None:
    """A server has closed an idle connection, and the guest's program does not know."""
    side = mux()
    old = abandoned(side, 1)
    ((new, data),) = feed(side, frame(1, b"another request"), FORGET_AFTER)
    assert new is not old
    assert data == b"another request"


@pytest.mark.parametrize("cut", range(1, 5))
def test_the_rest_of_a_frame_never_opens_a_stream_however_late_it_comes(cut: int) -> None:
    side = mux()
    said = frame(1, b"12345")
    ((stream, _),) = feed(side, said[: HEADER + cut])
    assert side.end(stream)
    side.abandon(stream)
    assert feed(side, said[HEADER + cut :], 5 * FORGET_AFTER) == []
    assert (side.dropped_frames, side.dropped) == (1, 5 - cut)
    assert feed(side, frame(1, b"still the old one"), 5 * FORGET_AFTER + 1) == []


def test_size_0_for_an_id_that_was_never_there_means_nothing() -> None:
    side = mux()
    assert feed(side, frame(0) + frame(1) + frame(-1)) == []
    assert (side.dropped_frames, side.dropped) == (0, 0)
    assert not opened(side, 1).peer_ended


def test_after_a_reset_every_id_is_new_and_the_old_streams_have_nothing_to_send() -> None:
    side = mux()
    feed(side, frame(3, b"x"))
    abandoned(side, 1)
    old = opened(side, 2)
    feed(side, frame(2, b"cut off")[:14])
    assert [stream.id for stream in side.reset()] == [3, 2]
    assert side.missing == 0
    assert not side.end(old)
    side.abandon(old)
    assert opened(side, 1)
    assert opened(side, 2) is not old


def test_a_stream_is_what_all_that_was_received_has_made_it_before_its_data_are_looked_at() -> None:
    """Who gives the data away must not take `peer_ended` for the end of it."""
    side = mux()
    said = memoryview(frame(1, b"last") + frame(1) + frame(1, b"new"))
    (stream, _), (_, end), (new, _) = side.receive_data(said, 0.0)
    assert end is None
    assert stream.peer_ended
    assert stream.replaced
    assert not new.peer_ended


# Where we open the streams


def test_streams_of_ours_have_ids_that_never_come_again() -> None:
    side = mux(accepts=False)
    ids = []
    for number in range(100):
        stream = side.open()
        ids.append(stream.id)
        if number % 3:
            assert side.end(stream)
        if number % 3 == 1:
            assert feed(side, frame(stream.id)) == [(stream, None)]
        if number % 10 == 9:
            side.reset()
    assert len(set(ids)) == 100


def test_a_peer_that_may_not_open_streams_has_what_it_makes_up_dropped_and_counted() -> None:
    side = mux(accepts=False)
    stream = side.open()
    made_up = frame(77, b"12345") + frame(-1, b"678") + frame(77)
    assert feed(side, made_up + frame(stream.id, b"x")) == [(stream, b"x")]
    assert (side.dropped_frames, side.dropped) == (2, 8)
    assert not side._ended


def test_data_behind_the_end_of_a_stream_of_ours_are_dropped() -> None:
    side = mux(accepts=False)
    stream = side.open()
    said = frame(stream.id, b"x") + frame(stream.id) + frame(stream.id, b"late")
    assert feed(side, said) == [(stream, b"x"), (stream, None)]
    assert side.dropped == 4
    assert not stream.replaced
    assert side.end(stream)


def test_a_stream_of_ours_does_not_get_the_rest_of_a_frame_made_up_before_it() -> None:
    side = mux(accepts=False)
    said = frame(1, b"12345")
    assert feed(side, said[:12]) == []
    assert side.open().id == 1
    assert feed(side, said[12:]) == []
    assert (side.dropped_frames, side.dropped) == (1, 5)


# Bounds


def test_nothing_is_left_of_many_streams_that_came_and_went() -> None:
    side = mux()
    for number in range(20_000):
        stream = opened(side, 0x7F00_0000_0000 + number % 3000 * 16)
        assert side.end(stream)
        if number % 2:
            side.abandon(stream)
        feed(side, frame(stream.id))
    assert not side._streams
    assert not side._ended


def test_ids_whose_end_never_comes_are_kept_for_a_time_only() -> None:
    side = mux()
    for number in range(1000):
        abandoned(side, number + 1, float(number))
    assert len(side._ended) == FORGET_AFTER


def test_more_ids_than_any_guest_has_are_not_remembered() -> None:
    side = mux()
    for number in range(module._MAX_ENDED + 10):
        abandoned(side, number + 1)
    assert len(side._ended) == module._MAX_ENDED


def test_the_id_that_was_silent_for_longest_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MAX_ENDED", 2)
    side = mux()
    abandoned(side, 1)
    abandoned(side, 2)
    assert feed(side, frame(1, b"still there")) == []
    abandoned(side, 3)
    assert feed(side, frame(1, b"still there")) == []
    opened(side, 2)
