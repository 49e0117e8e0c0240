"""JSON that a terminal can be shown, whatever a peer has put into its strings."""

from __future__ import annotations

import json


def json_text(value: object, *, indent: int | None = None) -> str:
    """JSON in printable ASCII: `json` escapes all else by itself, but not DEL.

    Args:
        value: of what `json` takes.
        indent: of its lines; None for one line.
    """
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")
