"""The command `headrace`: finds the sub-command, and turns whatever goes wrong into one clear line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click
import msgspec

from deploy.commands.command import Invocation
from deploy.suggestions import did_you_mean
from schemas.errors import HeadraceError

OK, FAILED, USAGE = 0, 1, 2
COMMANDS = {
    "demo": "deploy.commands.demo:demo",
    "up": "deploy.commands.stack:up",
    "status": "deploy.commands.stack:status",
    "down": "deploy.commands.stack:down",
    "apply": "deploy.commands.catalog:apply",
    "get": "deploy.commands.state:get",
    "delete": "deploy.commands.catalog:delete",
    "graph": "deploy.commands.graph:graph",
    "canary": "deploy.commands.canary:canary",
    "send": "deploy.commands.requests:send",
    "poll": "deploy.commands.requests:poll",
    "trace": "deploy.commands.trace:trace",
    "replay": "deploy.commands.replay:replay_requests",
    "feedback": "deploy.commands.feedback:feedback",
    "dispatcher": "deploy.commands.dispatcher:dispatcher",
    "worker": "deploy.commands.worker:worker",
    "sink": "deploy.commands.sink:sink",
    "taps": "deploy.commands.taps:taps",
    "scaler": "deploy.commands.scaler:scaler",
    "profile": "deploy.commands.profile:profile",
    "simulate": "deploy.commands.simulate:simulate",
    "plan": "deploy.commands.plan:plan",
    "optimizers": "deploy.commands.optimizers:optimizers",
    "measure": "deploy.commands.measure:measure",
    "split-model": "deploy.commands.split_model:split_model",
    "fpga": "deploy.commands.fpga:fpga",
    "bench": "deploy.commands.bench:bench",
    "deadletter": "deploy.commands.dead_letters:deadletter",
}
"""In the order of the help page; loaded when called, so that `headrace --help` and small tools start fast."""
_SHOWN_BY = "`headrace status` shows the stack of this folder, --print-config where the address comes from"
HINTS = {
    "log_unavailable": f"is Kafka running at that address? {_SHOWN_BY}",
    "store_unavailable": f"is Redis running at that address? {_SHOWN_BY}",
}
"""What to do about errors that do not say so themselves."""


class LazyGroup(click.Group):
    """A group whose commands are imported by name when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        return getattr(import_module(module), attribute)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"no such command {name!r}{did_you_mean(name, COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="headrace", prog_name="headrace")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def headrace(ctx: click.Context, *, debug: bool) -> None:
    """Asynchronous inference on Kafka: requests say how accurate the answer must be, and by when.

    \b
    headrace up --detach examples/fashion/*.yaml    the whole stack on this machine
    headrace send fashion image.json --wait 1000    one request by hand
    headrace down
    """
    if debug and isinstance(ctx.obj, Invocation):
        ctx.obj.debug = True


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exits with 0 (done), 1 (failed) or 2 (wrong usage)."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    invocation = Invocation()
    try:
        result: Any = headrace.main(args=list(arguments), prog_name="headrace", standalone_mode=False, obj=invocation)
        return result if isinstance(result, int) else OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return FAILED
    except BrokenPipeError:
        # Whoever read has gone (`| head`): nothing more can be said there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except HeadraceError as error:
        return _failed(invocation, error.code, str(error))
    except Exception as error:  # nobody should read a traceback to learn that something is wrong; --debug shows it
        return _failed(invocation, "defect", f"{type(error).__name__}: {error} (this is a defect; --debug shows where)")


def _failed(invocation: Invocation, code: str, message: str) -> int:
    if invocation.debug:
        traceback.print_exc()
    message = f"{message} ({HINTS[code]})" if code in HINTS else message
    click.echo(f"headrace: {message}", err=True)
    if invocation.json:
        click.echo(msgspec.json.encode({"error": {"code": code, "message": message}}).decode())
    return FAILED


if __name__ == "__main__":
    main()
