"""Errors: one line each, one exit code each, and out of task groups as what they are."""

from __future__ import annotations

import anyio
import pytest

from spicebridge import errors
from spicebridge.channel import ChannelClosedError
from spicebridge.errors import (
    MOST_NAMES,
    ConnectError,
    LoginError,
    ProtocolError,
    SpicebridgeError,
    listing,
    one_error,
    printable,
)

CLASSES = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, SpicebridgeError)
]


def test_every_class_has_an_exit_code_of_its_own() -> None:
    codes = [each.exit_code for each in CLASSES]
    assert sorted(codes) == list(range(1, len(CLASSES) + 1))


def test_a_broken_channel_ends_a_program_as_a_lost_session_does() -> None:
    assert ChannelClosedError.exit_code == errors.SessionLostError.exit_code


def test_an_error_is_its_problem_and_what_to_try_next() -> None:
    assert str(ConnectError("it is off", "switch it on")) == "it is off; switch it on"
    assert str(ConnectError("it is off")) == "it is off"


def test_an_error_can_say_where_it_happened() -> None:
    error = LoginError("wrong", "again").at("vm:5900")
    assert str(error) == "vm:5900: wrong; again"
    assert isinstance(error, LoginError)


def test_a_protocol_error_says_message_offset_expected_and_got() -> None:
    error = ProtocolError("PING", 42, "12 bytes", "11", "update the server")
    assert str(error) == "PING at byte 42: expected 12 bytes, got 11; update the server"
    assert (error.message, error.offset, error.expected, error.got) == (
        "PING",
        42,
        "12 bytes",
        "11",
    )


async def test_one_error_comes_out_of_task_groups_as_it_is() -> None:
    mine = LoginError("wrong")
    mine.__cause__ = OSError("why")
    with pytest.raises(LoginError) as caught, one_error():
        async with anyio.create_task_group(), anyio.create_task_group():
            raise mine
    assert caught.value is mine
    assert isinstance(mine.__cause__, OSError)


def test_the_first_of_several_errors_of_ours_comes_out() -> None:
    with pytest.raises(LoginError, match="first"), one_error():
        raise ExceptionGroup("", [LoginError("first"), ConnectError("second")])


def test_what_is_not_ours_is_not_hidden() -> None:
    with pytest.raises(ExceptionGroup), one_error():
        raise ExceptionGroup("", [LoginError("mine"), ValueError("a bug")])
    with pytest.raises(ValueError, match="a bug"), one_error():
        raise ValueError("a bug")


def test_without_an_error_nothing_happens() -> None:
    with one_error():
        pass


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("port:0 (org.ünïcode.0) 日本", "port:0 (org.ünïcode.0) 日本"),
        ("a\r\nb\t\0\x7f", r"a\r\nb\t\x00\x7f"),
        ("\x1b]0;owned\x07\x9b2J", r"\x1b]0;owned\x07\x9b2J"),
        ("\u202egnp.exe\u2066\ufeff\u2028", r"\u202egnp.exe\u2066\ufeff\u2028"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_a_peer_says_is_shown_as_text(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_message_lists_no_more_names_than_a_person_reads() -> None:
    assert listing([]) == ""
    assert listing(iter(["a", "b\n"])) == r"a, b\n"
    assert listing(["x" * 64, "y" * 65]) == f"{'x' * 64}, {'y' * 63}…"
    assert listing(map(str, range(MOST_NAMES + 3))).endswith(", 18, 19 and 3 more")
