"""GLib's key files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spicebridge.errors import UsageError
from spicebridge.transport.keyfile import Entry, read_group
from tests.transport.attempt import attempt


def group(text: str) -> list[tuple[str, str]]:
    """Keys and values of the group g."""
    return [(entry.key, entry.text()) for entry in read_group(text, "g")]


def lists(text: str) -> list[list[str]]:
    """Values of the group g as lists."""
    return [entry.items() for entry in read_group(text, "g")]


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("[g]\na=1\nb=2\n", [("a", "1"), ("b", "2")]),
        ("# comment\n\n  [g]\t\n \t a \t= \t1 # no comment \n#b=2\n", [("a", "1 # no comment ")]),
        ("[g]\r\na=1\r\n", [("a", "1")]),
        ("[h]\na=0\n[g]\na=1\n[h]\nb=2\n[g]\nb=3", [("a", "1"), ("b", "3")]),
        ("[g]\na=", [("a", "")]),
        ("[g]\na==;=", [("a", "=;=")]),
        ("[g]\n;a=1\nb c=2", [(";a", "1"), ("b c", "2")]),
        ("[g]\n[h]\n", []),
        ("[g]\na=\\s\\\\\\t\\r\\n\\\\n", [("a", " \\\t\r\n\\n")]),
        ("[g]\na=é\u2028b", [("a", "é\u2028b")]),
    ],
)
def test_a_group_has_its_keys_and_values(text: str, entries: list[tuple[str, str]]) -> None:
    assert group(text) == entries


def test_an_entry_knows_its_line_and_whether_it_is_a_translation() -> None:
    entries = read_group("\n[g]\na=1\n\na[de]=2", "g")
    assert entries == [Entry("a", "1", 3), Entry("a", "2", 5, translation=True)]
    assert "raw" not in repr(entries[0])


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("", []),
        ("main;port", ["main", "port"]),
        (" main ; port ;", ["main", "port"]),
        (";;a;;", ["a"]),
        (r"a\;b;c\\;\sd", ["a;b", "c\\", "d"]),
    ],
)
def test_a_list_has_its_items(value: str, items: list[str]) -> None:
    assert Entry("a", value, 1).items() == items


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it has no group [g]"),
        ("[h]\na=secret", "it has no group [g]"),
        ("a=secret\n[g]", "line 1 stands before the first [GROUP]"),
        ("[g]\n\nsecret", "line 3 is neither"),
        ("[g]\n=secret", "line 2 is neither"),
        ("[g]\n; secret", "line 2 is neither"),
        ("[g\na=1", "line 1 is neither"),
        ("[g]secret", "line 1 is neither"),
        ("[]", "line 1 is neither"),
        ("[g]\na[secret=1", "line 2 is neither"),
        ("[g]\na=\\xsecret", "line 2: a has a backslash"),
        ("[g]\na=secret\\;", "line 2: a has a backslash"),
        ("[g]\na=secret\\", "line 2: a has a backslash"),
    ],
)
def test_what_is_no_key_file_says_where_but_not_what(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        group(text)
    assert caught.value.problem.startswith(complaint)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["secret\\", "\\xsecret;a", "a;\\x"])
def test_a_list_with_a_broken_escape_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="line 7: a has a backslash"):
        Entry("a", value, 7).items()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")))
def test_every_value_can_be_written(value: str) -> None:
    escaped = value.replace("\\", "\\\\").replace(" ", "\\s").replace("\t", "\\t")
    escaped = escaped.replace("\r", "\\r").replace("\v", "").replace("\f", "")
    expected = value.replace("\v", "").replace("\f", "")
    assert group(f"[g]\na = {escaped}") == [("a", expected)]


@given(st.text(st.sampled_from("[]g=a;#\\ns \r\n\t")) | st.text())
def test_any_text_is_a_key_file_or_refused(text: str) -> None:
    for whole in (text, f"[g]\n{text}", f"[g]\na={text}"):
        for reader in (group, lists):
            found = attempt(reader, whole)
            if isinstance(found, UsageError):
                assert found.problem.startswith(("line ", "it has no group"))
