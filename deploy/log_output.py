"""Structured logs on stderr: text for people, JSON lines for machines; client libraries' logs go the same way."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

CLIENT_LOGGERS = ("aiokafka", "redis", "asyncio", "aiohttp", "faust", "mode")
EXPECTED = (
    # Said for a moment after a topic is created, a group starts or members come and go; the clients retry by themselves.
    "NotLeaderForPartition",
    "LeaderNotAvailable",
    "UnknownTopicOrPartition",
    "is not available during auto-create initialization",
    "not found in cluster metadata",
    "Group Coordinator Request failed",
    "GroupCoordinatorNotAvailable",
    "CoordinatorLoadInProgress",
    "Marking the coordinator dead",
    "Heartbeat failed for group",
    # Said many times a second while Kafka is away; the role that waits for it says so once.
    "Unable connect to",
    "Unable to request metadata",
    "Unable to update metadata",
    "Failed fetch messages from",
    "Heartbeat send request failed",
    "FindCoordinator Request failed",
    "Cannot send ",
    "NodeNotReadyError",
    "RequestTimedOutError",
    "Could not send ",
)


class ExpectedNoise(logging.Filter):
    """Lowers what is expected of a client library to debug: dropped unless debug is asked for."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg) + " " + " ".join(map(str, record.args or ()))
        if any(expected in text for expected in EXPECTED):
            record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return record.levelno >= self.level


def configure_logs(*, log_format: str | None, log_level: str, stream: TextIO | None = None, **bound: str) -> None:
    """Set up structlog and stdlib logging for this process.

    `log_format` None means text on a terminal, JSON else; `bound` (role, name) goes into every line.
    """
    output: TextIO = stream or sys.stderr
    as_text = log_format == "text" or (log_format is None and output.isatty())
    level = getattr(logging, log_level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        *([] if as_text else [structlog.processors.format_exc_info]),
    ]
    render: Processor = _text(output) if as_text else structlog.processors.JSONRenderer()
    bind = _Bind(bound)
    structlog.configure(
        processors=[*shared, bind, render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(output),
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, bind],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    handler.addFilter(ExpectedNoise(level))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in CLIENT_LOGGERS:
        logging.getLogger(name).setLevel(level if log_level == "debug" else max(level, logging.WARNING))
    logging.captureWarnings(capture=True)


def configure_tool_logs(*, debug: bool) -> None:
    """For commands that end: what goes wrong becomes their one line on stderr, so logs are for --debug only."""
    level = logging.DEBUG if debug else logging.CRITICAL
    for name in CLIENT_LOGGERS:
        logging.getLogger(name).setLevel(level)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # stdout is for results.
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
    )


def _text(output: TextIO) -> Processor:
    # Plain tracebacks: the renderer's own choice prints every local variable, payloads included.
    return structlog.dev.ConsoleRenderer(colors=output.isatty(), exception_formatter=structlog.dev.plain_traceback)


class _Bind:
    """Adds fixed fields without the cost of context variables."""

    def __init__(self, bound: dict[str, str]) -> None:
        self.bound = bound

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        for key, value in self.bound.items():
            event.setdefault(key, value)
        return event
