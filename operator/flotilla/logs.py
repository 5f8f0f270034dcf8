"""The process's log: one JSON object a line, with credentials redacted."""

import logging
import re
import sys
from datetime import UTC, datetime

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRETS = re.compile(r"(?i)\b(bearer\s+)[-._~+/a-z0-9]+=*|\b(hf_|sk-)[-_a-z0-9]{8,}|eyJ[-_a-z0-9]{10,}\.[-_.a-z0-9]+")


def redact(text: str) -> str:
    """Replace what looks like a token."""
    return _SECRETS.sub(lambda match: f"{match.group(1) or match.group(2) or ''}[redacted]", text)


class JsonFormatter(logging.Formatter):
    """Time, level, logger and message first, then the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return redact(orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode())


class TextFormatter(logging.Formatter):
    """For people."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback below it."""
        extra = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        clock = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        line = f"{clock} {record.levelname:<7} {record.getMessage()} {extra}".rstrip()
        return redact(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)


def configure(level: str, form: str) -> None:
    """Log to standard error. kopf logs each object at INFO, so it is limited to warnings."""
    # No line names its source, thread or process, and to find them takes as long as all the rest (logging's own
    # "Optimization" page names these switches).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in ("kopf", "aiohttp", "asyncio"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
