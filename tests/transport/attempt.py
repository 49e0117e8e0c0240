"""Calls a parser that may refuse what it is given, and nothing worse."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from spicebridge.errors import UsageError

T = TypeVar("T")


def attempt(parser: Callable[[str], T], text: str) -> T | UsageError:
    """What the parser makes of a text, or its refusal."""
    try:
        return parser(text)
    except UsageError as error:
        return error
