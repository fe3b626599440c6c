"""What a command shows: words and tables for people, one JSON object as the last line of stdout for programs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from schemas.errors import HeadraceError

PIPE_COLUMNS = 2_000
Worked = TypeVar("Worked")


class Output:
    """With `--json` everything for people goes to stderr, and stdout ends with one JSON object."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.console = Console(stderr=json, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            # Nobody's window sets the width: tables take what they need.
            self.console.width = PIPE_COLUMNS

    def say(self, words: str) -> None:
        """One line for people; nothing in it is markup."""
        self.console.print(Text(words))

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """A table; cells are text as it is. On a pipe the columns take the width that they need."""
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
        self.console.print(table)

    def result(self, value: Any) -> None:
        """The command's result: printed only with --json."""
        if self.json:
            click.echo(msgspec.json.encode(value, enc_hook=str).decode())


def stdout_is_terminal() -> bool:
    """Whether somebody reads along, so that long values are better shortened."""
    return sys.stdout.isatty()


def with_progress(work: Callable[[Callable[[float, str], None]], Worked]) -> Worked:
    """Do the work under a bar on stderr; it says the part that is done (0..1) and what comes now."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("loading", total=1.0)
        return work(lambda done, what: progress.update(bar, completed=done, description=what))


def write_json(file: Path, value: Any) -> None:
    """An indented JSON file. Raises HeadraceError where it cannot be written."""
    try:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
    except OSError as error:
        raise HeadraceError(f"{file}: cannot be written: {error.strerror}") from None
