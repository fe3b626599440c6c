"""The steps that a run has taken, and the measured accuracy that goes with them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from schemas.terminal import PathStep


class Path:
    """Steps in the order of their first completion; those of one stage's rows on one device are one step."""

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str, str], PathStep] = {}
        self.ran: dict[str, set[str]] = {}
        """Path of a model stage -> names of the variants that ran."""

    def add(self, path: str, variant: str, step: PathStep, *, model: bool) -> None:
        """One completion. Of several on one device the longest times count, and the largest batch."""
        key = (path, variant, step.device)
        before = self._steps.get(key)
        if before is not None:
            step = msgspec.structs.replace(
                before,
                queued_ms=max(before.queued_ms, step.queued_ms),
                computed_ms=max(before.computed_ms, step.computed_ms),
                batch_size=max(before.batch_size, step.batch_size),
            )
        elif step.stage != path:
            step = msgspec.structs.replace(step, stage=path)
        self._steps[key] = step
        if model:
            self.ran.setdefault(path, set()).add(variant_name(variant))

    def steps(self) -> list[PathStep]:
        return list(self._steps.values())

    def measured(self, table: Mapping[str, Combination], planned: tuple[str, ...], last: tuple[str, str] | None) -> float | None:
        """The least accuracy of the measured combinations that what ran (and `last`, a stage and its variant) can be part of; of the planned first.

        None where nothing was measured that fits.
        """
        if not table:
            return None
        ran = self.ran
        if last is not None:
            ran = ran | {last[0]: ran.get(last[0], set()) | {variant_name(last[1])}}
        fitting = [key for key, combination in table.items() if combination.fits(ran)]
        wanted = [key for key in fitting if key in planned] or fitting
        return min((table[key].accuracy for key in wanted), default=None)


class Combination(msgspec.Struct, frozen=True):
    """A measured combination: a variant's name for each model stage, and the end-to-end accuracy."""

    variants: dict[str, str]
    accuracy: float

    def fits(self, ran: Mapping[str, set[str]]) -> bool:
        """Whether each stage that ran has a variant here that ran."""
        return all(self.variants.get(path) in names for path, names in ran.items())


def variant_name(variant: str) -> str:
    """The name of a variant, given as name or key."""
    return variant.rpartition("/")[2]
