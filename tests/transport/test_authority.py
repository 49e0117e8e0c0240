"""The parts of an authority: what was escaped comes out as it went in."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import UsageError
from spicebridge.transport.authority import Authority, split_authority, without_secrets
from tests.transport.attempt import attempt

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)


@given(TEXT, TEXT, st.sampled_from([("vm", "vm"), ("[::1]", "::1"), ("", "")]), st.none() | TEXT)
def test_logins_may_have_any_character_if_it_is_escaped(
    username: str, password: str, host: tuple[str, str], port: str | None
) -> None:
    written, name = host
    behind = "" if port is None else ":" + quote(port, safe="")
    text = f"{quote(username, safe='')}:{quote(password, safe='')}@{written}{behind}"
    raw = None if port is None else quote(port, safe="")
    assert split_authority(text) == Authority(name, raw, username, password)


def test_a_password_is_not_in_the_representation() -> None:
    assert "secret" not in repr(split_authority("me:secret@vm"))


@given(st.text(st.sampled_from("a:@[]%/4é\0 "), max_size=12) | st.text(max_size=12))
def test_any_text_is_an_authority_or_refused(text: str) -> None:
    authority = attempt(split_authority, text)
    if isinstance(authority, UsageError):
        assert authority.problem.startswith("has ")


@given(st.text(st.sampled_from("abc:/?&;#@ [")), st.sampled_from(["spice://", "http://", ""]))
def test_nothing_before_an_at_sign_or_behind_a_question_mark_is_repeated(
    text: str, scheme: str
) -> None:
    secret = "SECRET"
    assert secret not in without_secrets(f"{scheme}{secret}{text}@vm")
    assert secret not in without_secrets(f"{scheme}{text}?{secret}")
