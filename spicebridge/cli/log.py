"""Logs on stderr: a line of text for people, or one JSON object a line for scripts."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from rich.console import Console
from rich.text import Text

_STEPS: Final = logging.getLogger("spicebridge.steps")


class LogFormat(StrEnum):
    """What ``--log-format`` takes."""

    TEXT = "text"
    JSON = "json"


class _TextFormatter(logging.Formatter):
    """``20:15:04 INFO port=serial0: pid 4242 (socat) connected``."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        bridge = getattr(record, "bridge", "spicebridge")
        return f"{time} {record.levelname} {bridge}: {_printable(record.getMessage())}"


class _JsonFormatter(logging.Formatter):
    """``{"time": …, "level": …, "event": …, "bridge": …, "message": …, …}``."""

    def format(self, record: logging.LogRecord) -> str:
        fallback = "error" if record.levelno >= logging.ERROR else "log"
        return json.dumps(
            {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
                "level": record.levelname.lower(),
                "event": getattr(record, "event", fallback),
                "bridge": getattr(record, "bridge", None),
                "message": record.getMessage(),
                **getattr(record, "fields", {}),
            }
        )


class _EventsToo(logging.Filter):
    """Lets every event through, however small, for scripts; of the rest what the level asks for."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._level or hasattr(record, "event")


class _ConsoleHandler(logging.Handler):
    """Writes through Rich's console, so that a live line below stays whole."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.print(Text(self.format(record)), soft_wrap=True)
        except OSError:  # e.g. its disk is full; the bridges matter more than their log
            pass


def _printable(text: str) -> str:
    """What a peer sent never reaches a terminal as control characters."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def set_up_logging(console: Console, log_format: LogFormat, level: int) -> None:
    """Sends our log records to stderr.

    Args:
        console: on stderr.
        log_format: text or JSON.
        level: the lowest level that is shown.
    """
    handler = _ConsoleHandler(console)
    handler.setFormatter(_JsonFormatter() if log_format is LogFormat.JSON else _TextFormatter())
    _STEPS.setLevel(level)  # many for each link, so that scripts get them only if they ask
    if log_format is LogFormat.JSON and level == logging.INFO:
        handler.addFilter(_EventsToo(level))
        level = logging.DEBUG
    logger = logging.getLogger("spicebridge")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def show_steps() -> None:
    """Shows each step of reaching a server, whatever else is shown."""
    _STEPS.setLevel(logging.DEBUG)
