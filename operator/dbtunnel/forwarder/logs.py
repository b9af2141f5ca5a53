"""Log lines: one JSON object each, events with fields. Never a secret, never a client's data."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from dbtunnel.domain.diagnosis import printable

_LIMIT = 1000
"""Characters of one field: a remote server may have written it."""


class JsonFormatter(logging.Formatter):
    """An event, its level and time, and the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": printable(record.getMessage(), _LIMIT),
            **{key: printable(value, _LIMIT) if isinstance(value, str) else value for key, value in fields.items()},
        }
        if record.exc_info:
            line["exception"] = printable(self.formatException(record.exc_info), 4 * _LIMIT)
        return json.dumps(line)


def configure(level: str = "INFO") -> None:
    """Sends everything to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # asyncssh logs each channel and each address at INFO; what counts is told by the forwarder itself
    logging.getLogger("asyncssh").setLevel(logging.CRITICAL)


def event(logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Logs an event with fields."""
    logger.log(level, name, extra={"fields": fields})
