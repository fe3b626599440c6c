"""Where settings come from: option, environment, TOML file, running stack or default, in this order, each with its origin.

This is the only place of Headrace that knows environment variables: HEADRACE_<OPTION> for every option of every command.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from deploy.suggestions import did_you_mean
from schemas.errors import ConfigurationError
from schemas.limits import Limits
from schemas.names import NAME, Names

ENVIRONMENT_PREFIX = "HEADRACE_"
FILE_BYTES_MAX = 1 << 20
CLIENT_TABLES = ("kafka_options", "redis_options")
"""TOML tables that go to the client libraries as they are (TLS, SASL, time-outs)."""
LIMITS_TABLE = "limits"
"""TOML table that changes bounds of schemas/limits.py, for every role that reads it."""
PREFIX_CHARACTERS_MAX = 64
"""Topic names have at most 249 characters, and a prefix is only their beginning."""
READY_WHEN = ("serving", "running")
"""serving: /readyz says ok; running: the role was started, whatever it still waits for (a catalog, a worker)."""
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
_SECRET = re.compile(r"password|secret|token|credential|private", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^:/@]*):[^@/]*@")
_HOST_PORT = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})$")


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Which servers, and under which prefix. Addresses may be absent: `need_kafka` and `need_redis` say what to do then."""

    kafka: str | None = None
    redis: str | None = None
    prefix: str = "headrace"
    replication: int = 1
    """Copies of each topic that has to be created; what exists stays as it is."""
    kafka_options: dict[str, Any] = {}
    redis_options: dict[str, Any] = {}
    limits: Limits = Limits()

    @property
    def names(self) -> Names:
        return Names(self.prefix)

    def need_kafka(self) -> str:
        """The address. Raises ConfigurationError where none is known."""
        return self.kafka or _absent("Kafka address", "--kafka HOST:PORT", "HEADRACE_KAFKA")

    def need_redis(self) -> str:
        """The URL. Raises ConfigurationError where none is known."""
        return self.redis or _absent("Redis or Valkey address", "--redis redis://HOST:PORT", "HEADRACE_REDIS")


def _absent(what: str, option: str, variable: str) -> str:
    raise ConfigurationError(f"no {what}: give {option}, set {variable}, or start a stack in this folder with `headrace up`")


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a role runs as a process, whatever the role is."""

    http: str | None = None
    """HOST:PORT of the metrics and health server; None: no server."""
    ready_file: Path | None = None
    ready_when: str = "serving"
    """When the ready file appears: one of READY_WHEN."""
    log_format: str | None = None
    log_level: str = "info"


class Setting(msgspec.Struct, frozen=True):
    """One value as --print-config shows it; `origin` is option, environment, file, stack or default."""

    name: str
    value: Any
    origin: str


class ConfigurationFile(msgspec.Struct, frozen=True):
    """A TOML file as one command sees it: option values (its own table wins over the top level) and client options."""

    options: dict[str, Any]
    client_options: dict[str, Any]
    """Client options and limits, by table."""


def environment_variable(option: str) -> str:
    """The variable that gives this option (`ready_file` or `ready-file`: HEADRACE_READY_FILE)."""
    return ENVIRONMENT_PREFIX + option.replace("-", "_").upper()


def read_configuration(path: Path, *, command: str, options: Iterable[str], shared: Iterable[str], commands: Iterable[str]) -> ConfigurationFile:
    """Read a TOML file for one command.

    `options` are the command's own names, `shared` those that may stand at the top level for every command, `commands` all commands (tables).
    Raises ConfigurationError naming every unknown key with its near misses, or what else is wrong with the file.
    """
    document = _read_toml(path)
    shared, commands, options = set(shared), set(commands), set(options)
    wrong: list[str] = []
    values: dict[str, Any] = {}
    client_options: dict[str, Any] = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if isinstance(value, dict):
            table = cast("dict[str, Any]", value)
            if name in (*CLIENT_TABLES, LIMITS_TABLE):
                client_options[name] = _read_limits(path, table) if name == LIMITS_TABLE else table
            elif key not in commands:
                wrong.append(f"unknown table [{key}]{did_you_mean(key, {*commands, *CLIENT_TABLES, LIMITS_TABLE})}")
        elif name in shared:
            values[name] = value
        else:
            wrong.append(f"unknown key {key!r} at the top level{did_you_mean(name, shared)}")
    own = cast("dict[str, Any]", document.get(command, {}))
    for key, value in own.items():
        name = key.replace("-", "_")
        if name not in options:
            wrong.append(f"unknown key {key!r} in [{command}]{did_you_mean(name, options)}")
        elif isinstance(value, dict):
            wrong.append(f"{key!r} in [{command}] is one value or a list, not a table")
        values[name] = value
    if wrong:
        raise ConfigurationError("\n".join(f"{path}: {what}" for what in wrong))
    return ConfigurationFile({name: value for name, value in values.items() if name in options}, client_options)


def _read_limits(path: Path, table: dict[str, Any]) -> Limits:
    known = Limits.__struct_fields__
    for name in table:
        if name not in known:
            raise ConfigurationError(f"{path}: unknown key {name!r} in [{LIMITS_TABLE}]{did_you_mean(name, known)}")
    for name, value in table.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{path}: {name} in [{LIMITS_TABLE}] is a whole number from 1, not {value!r}")
    limits = Limits(**table)
    if limits.response_ttl_ms < limits.response_ttl_ms_min:
        raise ConfigurationError(
            f"{path}: response_ttl_ms in [{LIMITS_TABLE}] is at least {limits.response_ttl_ms_min}: answers must be there to be polled"
        )
    return limits


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ConfigurationError(f"{path}: the file is over {FILE_BYTES_MAX} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None


def check_prefix(prefix: str) -> str:
    """The prefix. Raises ConfigurationError where Kafka would not take it in a topic's name."""
    if NAME.fullmatch(prefix) and len(prefix) <= PREFIX_CHARACTERS_MAX:
        return prefix
    raise ConfigurationError(
        f"prefix {prefix!r}: letters, digits, `.`, `_`, `-`, a letter or digit first, {PREFIX_CHARACTERS_MAX} characters at most"
    )


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT; IPv6 hosts in brackets. Raises ConfigurationError."""
    found = _HOST_PORT.match(address)
    if found is None or int(found[2]) > 65_535:
        raise ConfigurationError(f"{address!r} is not an address: write HOST:PORT, as 127.0.0.1:9092")
    return found[1].strip("[]"), int(found[2])


def shown(name: str, value: Any) -> Any:
    """A value fit for the screen: secrets are masked, tables too."""
    if isinstance(value, Mapping):
        table = cast("Mapping[str, Any]", value)
        return {key: shown(key, inner) for key, inner in table.items()}
    if value is not None and _SECRET.search(name):
        return "***"
    if isinstance(value, str):
        return _URL_PASSWORD.sub(r"\1:***@", value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [shown(name, inner) for inner in cast("Iterable[Any]", value)]
    return value
