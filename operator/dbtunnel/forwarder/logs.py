"""Log lines: events with fields, a JSON object each in a pod. Never a secret, never a client's data."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from dbtunnel.domain.diagnosis import printable

_LIMIT = 4000
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
            line["exception"] = printable(self.formatException(record.exc_info), 2 * _LIMIT)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """One line for a person: the time of day, the event, its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; more where a bug is told."""
        fields: dict[str, Any] = getattr(record, "fields", {})
        words = [
            datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S"),
            *(() if record.levelno == logging.INFO else (record.levelname.lower(),)),
            printable(record.getMessage(), _LIMIT),
            *(f"{key}={printable(str(value), _LIMIT)}" for key, value in fields.items() if value != ""),
        ]
        told = self.formatException(record.exc_info)[-2 * _LIMIT :].splitlines() if record.exc_info else []
        return "\n".join([" ".join(words), *(printable(line, _LIMIT) for line in told)])


FORMATS: dict[str, type[logging.Formatter]] = {"json": JsonFormatter, "text": TextFormatter}


class Budget:
    """Lets so many through in so many seconds: what many clients can cause must not fill a disk."""

    def __init__(self, count: int, seconds: float) -> None:
        self._count, self._seconds = count, seconds
        self._begun, self._spent = -seconds, 0

    def allows(self, now: float) -> bool:
        """Whether one more may pass at this time."""
        if now - self._begun >= self._seconds:
            self._begun, self._spent = now, 0
        self._spent += 1
        return self._spent <= self._count


class Fold:
    """Tells the first of many at once, and then those since it last told, no more than once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._told_at, self._count = seconds, -seconds, 0

    def add(self, now: float) -> int:
        """One more. Returns how many there have been since it last told, where it is time to tell; else 0."""
        self._count += 1
        if now - self._told_at < self._seconds:
            return 0
        count, self._count, self._told_at = self._count, 0, now
        return count


def configure(level: str = "INFO", form: str = "json") -> None:
    """Sends everything to standard error, in one of FORMATS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[form]())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # of which no line tells, and which takes time at the end of each session
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # asyncssh logs each channel and each address at INFO; what counts is told by the forwarder itself
    logging.getLogger("asyncssh").setLevel(logging.CRITICAL)


def event(logger: logging.Logger, name: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Logs an event with fields."""
    logger.log(level, name, extra={"fields": fields})
