"""The shape of every sub-command: shared options, their sources in order, --print-config, --json and --debug."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.core import ParameterSource

from deploy.commands.output import Output
from deploy.configuration import (
    LOG_FORMATS,
    LOG_LEVELS,
    READY_WHEN,
    ConfigurationFile,
    Connection,
    RunOptions,
    Setting,
    check_prefix,
    environment_variable,
    read_configuration,
    shown,
    split_address,
)
from deploy.log_output import configure_tool_logs
from deploy.running_stack import stack_settings
from deploy.suggestions import did_you_mean
from schemas.errors import ConfigurationError

CONNECTION = ("kafka", "redis", "prefix", "replication")
RUNNING = ("http", "ready_file", "ready_when", "log_format", "log_level")
SHARED = (*CONNECTION, "http", "log_format", "log_level")
"""What may stand at the top level of a TOML file, for every command."""
UNSETTABLE = frozenset({"config", "print_config", "help", "json", "debug", "ready_file", "ready_when"})
"""Options of one call, not of an installation: never read from a file."""
Function = TypeVar("Function", bound=Callable[..., Any])


class Invocation(msgspec.Struct):
    """What `main` needs to know of a call after it failed."""

    debug: bool = False
    json: bool = False


def option(*declarations: str, **attributes: Any) -> Callable[[Function], Function]:
    """click.option with HEADRACE_<OPTION> as its environment variable."""
    return click.option(*declarations, cls=Option, **attributes)


class Option(click.Option):
    """An option that can be given as HEADRACE_<OPTION> too."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        if self.name not in UNSETTABLE and not self.envvar:
            self.envvar = environment_variable(self.name or "")


def config_path() -> Path | None:
    """The TOML file of the present command, for processes that it starts."""
    return click.get_current_context().meta.get(_PATH)


class Command(click.Command):
    """A sub-command with the options that all share: servers, prefix, file, --print-config, --json, --debug.

    The callback gets `connection` and `output`, and `running` (RunOptions) where the command runs a role, beside its own options.
    """

    runs_role = False

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params.extend(_connection_options())
        self.params.extend(_role_options() if self.runs_role else _tool_options())
        self.params.extend(_call_options())

    def invoke(self, ctx: click.Context) -> Any:
        """Fold the shared options into `connection`, `running` and `output`, and call the command."""
        if ctx.params.pop("print_config"):
            self._print_settings(ctx)
            return None
        given = {name: ctx.params.pop(name) for name in CONNECTION}
        given |= self._without_stack(ctx)
        client_options = ctx.meta.get(_FILE, ConfigurationFile({}, {})).client_options
        ctx.params["connection"] = Connection(**given, **client_options)
        if self.runs_role:
            running = {name: ctx.params.pop(name) for name in RUNNING}
            ctx.params["running"] = RunOptions(**running)
        else:
            configure_tool_logs(debug=isinstance(ctx.obj, Invocation) and ctx.obj.debug)
            ctx.params["output"] = Output(json=ctx.params.pop("json"))
        return super().invoke(ctx)

    def settings(self, ctx: click.Context) -> list[Setting]:
        """Every option of this command with its value and where that came from."""
        ctx.params |= self._without_stack(ctx)
        found: list[Setting] = []
        for parameter in self.params:
            name = parameter.name or ""
            if name in UNSETTABLE - {"ready_file", "ready_when"} or not isinstance(parameter, click.Option):
                continue
            found.append(Setting(name, ctx.params.get(name), self._origin(ctx, name)))
        for table, options in ctx.meta.get(_FILE, ConfigurationFile({}, {})).client_options.items():
            found.append(Setting(table, options, "file"))
        return found

    @staticmethod
    def _origin(ctx: click.Context, name: str) -> str:
        source = ctx.get_parameter_source(name)
        origin = "default" if source is None else _ORIGINS.get(source, "default")
        if origin == "file" and name in ctx.meta.get(_STACK, {}):
            return "default" if name in ctx.meta.get(_DROPPED, ()) else "stack"
        return origin

    def _without_stack(self, ctx: click.Context) -> dict[str, Any]:
        """Another Kafka than the running stack's was named: the stack's Redis and prefix say nothing about that one."""
        if self._origin(ctx, "kafka") == "stack":
            return {}
        foreign = {name for name in CONNECTION if self._origin(ctx, name) == "stack"}
        ctx.meta[_DROPPED] = foreign | ctx.meta.get(_DROPPED, set())
        return {name: getattr(Connection(), name) for name in foreign}

    def _print_settings(self, ctx: click.Context) -> None:
        output = Output(json=bool(ctx.params.get("json")))
        settings = [Setting(setting.name, shown(setting.name, setting.value), setting.origin) for setting in self.settings(ctx)]
        if output.json:
            output.result({setting.name: {"value": setting.value, "origin": setting.origin} for setting in settings})
        else:
            rows = [(s.name, "" if s.value is None else s.value, s.origin) for s in settings]
            output.table("", ("option", "value", "origin"), rows)


class Group(click.Group):
    """A group of sub-commands that says which ones are near a wrong name."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            ctx.fail(f"no such command {name!r}{did_you_mean(name, self.commands)}")
        return super().resolve_command(ctx, args)


class RoleCommand(Command):
    """A sub-command that runs one role as a process."""

    runs_role = True


_FILE, _PATH, _STACK, _DROPPED = "headrace.file", "headrace.path", "headrace.stack", "headrace.dropped"
_ORIGINS = {
    ParameterSource.COMMANDLINE: "option",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
    ParameterSource.DEFAULT: "default",
}


def _connection_options() -> Iterable[click.Parameter]:
    return (
        Option(["--kafka"], metavar="HOST:PORT[,...]", callback=_checked_addresses, help="Kafka bootstrap servers."),
        Option(["--redis"], metavar="URL", callback=_checked_url, help="Redis or Valkey, as redis://HOST:PORT."),
        Option(["--prefix"], default="headrace", show_default=True, callback=_checked_prefix, help="Beginning of every topic, group and key name."),
        Option(["--replication"], type=click.IntRange(1, 9), default=1, show_default=True, help="Copies of each topic that has to be created."),
    )


def _role_options() -> Iterable[click.Parameter]:
    return (
        Option(["--http"], metavar="HOST:PORT", callback=_checked_http, help="Serve /metrics, /healthz and /readyz here (port 0: a free one)."),
        Option(["--ready-file"], type=click.Path(dir_okay=False, path_type=Path), help="File to create when ready."),
        Option(["--ready-when"], type=click.Choice(READY_WHEN), default="serving", show_default=True, help="What ready means for that file."),
        Option(["--log-format"], type=click.Choice(LOG_FORMATS), help="Default: text on a terminal, json else."),
        Option(["--log-level"], type=click.Choice(LOG_LEVELS), default="info", show_default=True),
    )


def _tool_options() -> Iterable[click.Parameter]:
    return (Option(["--json"], is_flag=True, callback=_noted, help="Print one JSON object as the last line of stdout; words go to stderr."),)


def _call_options() -> Iterable[click.Parameter]:
    return (
        Option(
            ["--config"],
            type=click.Path(dir_okay=False, path_type=Path),
            envvar="HEADRACE_CONFIG",
            is_eager=True,
            expose_value=False,
            callback=_read_sources,
            help="TOML file with options: at the top level for every command, in [COMMAND] for one.",
        ),
        Option(["--print-config"], is_flag=True, help="Show each value and its origin, and do nothing."),
        Option(["--debug"], is_flag=True, expose_value=False, callback=_noted, help="Show tracebacks."),
    )


def _noted(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:  # noqa: FBT001 - click's callback signature
    if value and isinstance(ctx.obj, Invocation):
        setattr(ctx.obj, parameter.name or "", True)
    return value


def _read_sources(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Before the other options: what they fall back to is the file, then the stack that runs in this folder."""
    # By its first word: `headrace canary status` looks for the stack that `headrace status` is about.
    own = ctx.command_path.partition(" ")[2].partition(" ")[0]
    stacked = stack_settings() if own not in _WITHOUT_STACK else {}
    ctx.meta[_STACK] = stacked
    ctx.default_map = dict(stacked)
    ctx.meta[_PATH] = path
    if path is None:
        return
    names = {parameter.name or "" for parameter in ctx.command.params if isinstance(parameter, click.Option)} - UNSETTABLE
    group = ctx.find_root().command
    commands = group.list_commands(ctx) if isinstance(group, click.Group) else []
    file = read_configuration(path, command=own, options=names, shared=SHARED, commands=commands)
    _check_lists(path, ctx.command, file.options)
    ctx.meta[_FILE] = file
    ctx.meta[_STACK] = {name: value for name, value in stacked.items() if name not in file.options}
    ctx.default_map = stacked | file.options


_WITHOUT_STACK = frozenset({"up", "status", "down", "demo", "bench"})
"""They make and end a stack: its addresses are their result, not their setting."""


def _check_lists(path: Path, command: click.Command, values: dict[str, Any]) -> None:
    many = {parameter.name for parameter in command.params if isinstance(parameter, click.Option) and parameter.multiple}
    for name, value in values.items():
        if isinstance(value, list) != (name in many):
            kind = "a list" if name in many else "one value, not a list"
            raise ConfigurationError(f"{path}: {name!r} is {kind}")


def _checked_prefix(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    return _or_usage_error(check_prefix, value)


def _checked_http(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        _or_usage_error(split_address, value)
    return value


def _checked_addresses(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    for address in value.split(",") if value is not None else []:
        _or_usage_error(split_address, address.strip())
    return value


def _checked_url(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None or value.startswith(("redis://", "rediss://", "unix://")):
        return value
    raise click.BadParameter(f"{value!r} is not a URL: write redis://HOST:PORT (rediss:// for TLS, unix:// for a socket)")


Checked = TypeVar("Checked")


def _or_usage_error(check: Callable[[str], Checked], value: str) -> Checked:
    try:
        return check(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None
