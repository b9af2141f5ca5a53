"""Logs as JSON events with fields, one a line. Never a manifest, a difference or a secret."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from dbtunnel.domain.diagnosis import printable

_LIMIT = 4000
"""Characters of one value."""


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; what Kopf and libraries log takes the same form."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage()[:_LIMIT],
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)[-_LIMIT:]
        return json.dumps(document, default=str)


class TextFormatter(logging.Formatter):
    """A record as one line for a person: time, level, event, fields; more lines where an exception is told."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        words = [
            datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            record.levelname.lower(),
            printable(record.getMessage(), _LIMIT),
            *(f"{key}={printable(str(value), _LIMIT)}" for key, value in fields.items()),
        ]
        told = self.formatException(record.exc_info)[-_LIMIT:].splitlines() if record.exc_info else []
        return "\n".join([" ".join(words), *(printable(line, _LIMIT) for line in told)])


FORMATS: dict[str, type[logging.Formatter]] = {"json": JsonFormatter, "text": TextFormatter}


def configure(level: str, form: str = "json") -> None:
    """Sends all logs to standard error, in one of FORMATS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[form]())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if level != "DEBUG":
        # each watch event, and each probe of the kubelet, would be a line
        for name in ("kopf.objects", "kopf.activities.probe", "aiohttp.access"):
            logging.getLogger(name).setLevel(logging.WARNING)


def event(logger: logging.Logger, what: str, /, *, level: int = logging.INFO, **fields: object) -> None:
    """Logs that something happened, with its particulars as fields."""
    logger.log(level, what, extra={"fields": {key: _bounded(value) for key, value in fields.items()}})


def _bounded(value: object) -> object:
    return value[:_LIMIT] if isinstance(value, str) else value
