"""The Python API: every name is there, from the module that it is said to be of."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import spicebridge


def test_what_is_imported_is_what_type_checkers_believe() -> None:
    tree = ast.parse(Path(spicebridge.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and not node.orelse][:1]
    believed = {
        node.module.removeprefix("spicebridge."): tuple(each.name for each in node.names)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert believed == spicebridge._NAMES
    names = [name for names in believed.values() for name in names]
    assert sorted([*names, "__version__"]) == sorted(spicebridge.__all__)


@pytest.mark.parametrize("name", spicebridge.__all__)
def test_every_name_is_there(name: str) -> None:
    value = getattr(spicebridge, name)
    assert value is not None
    assert getattr(spicebridge, name) is value
    assert name in dir(spicebridge)


def test_another_name_is_an_error_as_everywhere() -> None:
    with pytest.raises(AttributeError, match="module 'spicebridge' has no attribute 'nothing'"):
        getattr(spicebridge, "nothing")  # noqa: B009 - mypy knows that it is not there
