"""Logs on stderr: a line of text for people, or one JSON object a line for scripts."""

from __future__ import annotations

import logging
import time
from enum import StrEnum
from typing import Final

from spicebridge import printable
from spicebridge.cli.lines import WriteLine

_STEPS: Final = logging.getLogger("spicebridge.steps")


class LogFormat(StrEnum):
    """What ``--log-format`` takes."""

    TEXT = "text"
    JSON = "json"


class _TextFormatter(logging.Formatter):
    """``20:15:04 INFO port=serial0: pid 4242 (socat) connected``."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        bridge = getattr(record, "bridge", "spicebridge")
        return f"{clock} {record.levelname} {bridge}: {printable(record.getMessage())}"


class _JsonFormatter(logging.Formatter):
    """``{"time": …, "level": …, "event": …, "bridge": …, "message": …, …}``."""

    def format(self, record: logging.LogRecord) -> str:
        from datetime import UTC, datetime  # here, as most commands log none, and would start later

        from spicebridge.cli.json_text import json_text

        fallback = "error" if record.levelno >= logging.ERROR else "log"
        return json_text(
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


class _LineHandler(logging.Handler):
    def __init__(self, write: WriteLine) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record))


def set_up_logging(write: WriteLine, log_format: LogFormat, level: int) -> None:
    """Makes lines of our log records.

    Args:
        write: gets them.
        log_format: text or JSON.
        level: the lowest level that is shown.
    """
    handler = _LineHandler(write)
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
