"""The progress bar of the demos."""

from __future__ import annotations

from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.commands.output import Output


def progress_bar(output: Output) -> Progress:
    """One that stands still in a log."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=output.console)


def shown_on(progress: Progress, total: int) -> Callable[[str, int, int], None]:
    """What `play` calls with phase, published and answered."""
    sent = progress.add_task("", total=total)

    def show_progress(phase: str, published: int, answered: int) -> None:
        progress.update(sent, description=f"{phase}: {answered} answered", completed=published)

    return show_progress
