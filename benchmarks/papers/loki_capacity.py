"""Loki: how much more demand a fixed cluster serves when accuracy is scaled beside hardware, and what accuracy is left: the whole curve."""

from __future__ import annotations

from benchmarks.papers.bench import Bench, all_optimizers, by_optimizer
from benchmarks.papers.capacity import ATTAINMENT, capacities, runner, served_well
from benchmarks.papers.row import OURS, Line, Measured, part, times
from deploy.simulation.report import Row, offered_in_words
from deploy.simulation.series import Chart
from deploy.simulation.series import Line as Drawn
from deploy.simulation.table import percent

SCENARIO = "loki-traffic"
RATE = "loads.traffic.rate_rps"
HARDWARE, THEIRS = "static-accurate", "loki"
ACCURACY_MIN = 0.87
CAPACITY_MUST = 2.7
CURVE = (1.0, 1.5, 2.0, 2.7, 4.0)
PAPER_CURVE = {1.5: 0.967, 2.0: 0.938, 2.7: 0.870, 4.0: 0.73}
"""Demand as a multiple of what the most accurate models serve -> accuracy, as Loki's own profile has it."""
START_RPS = 200.0


class LokiCapacity:
    """Effective capacity of accuracy scaling over hardware scaling."""

    name = "loki-capacity"
    title = "Effective capacity of accuracy scaling over hardware scaling"
    source = "Loki, HPDC'24 (arXiv 2407.03583): more than 2.7 x on a fixed cluster of 20 servers, 250 ms"
    differences = (
        "Loki's profiles carry no licence: YOLOv5, ResNet and VGG figures come from public tables and a batch model for the GTX 1080 Ti, so "
        "the curve has other points than Loki's. Requests come as a Poisson process. Hardware scaling is the most accurate variants on all workers."
    )

    def measure(self, bench: Bench) -> Measured:
        """Two searches, then every optimizer at fixed multiples of the hardware-only capacity."""
        seeds = bench.seeds[:1]
        run = runner(bench, SCENARIO, seeds)
        hardware_rps = capacities(by_optimizer([HARDWARE]), START_RPS, run, RATE)[HARDWARE]
        names = [name for name in (THEIRS, OURS) if name in all_optimizers()]
        scaled = capacities(by_optimizer(names), hardware_rps * CAPACITY_MUST, run, RATE, ACCURACY_MIN)
        others = [name for name in all_optimizers() if name not in (*names, HARDWARE)]
        at_ours = bench.rows(SCENARIO, {name: {"control.optimizer": name, RATE: repr(scaled[OURS])} for name in others}, seeds)
        better = [name for name, row in at_ours.items() if served_well(row, ACCURACY_MIN)] + [name for name in names if scaled[name] > scaled[OURS]]
        curve = self._curve(bench, hardware_rps, [*names, HARDWARE])
        gain = scaled[OURS] / hardware_rps if hardware_rps else None
        lines = [
            Line(
                figure=f"capacity at {ATTAINMENT:.0%} attainment and {ACCURACY_MIN:.0%} of the best accuracy, over hardware scaling",
                paper="2.7 x",
                ours=times(gain),
                must=f">= {CAPACITY_MUST} x",
                met=gain is not None and gain >= CAPACITY_MUST,
            ),
            Line(figure="the same with the optimizer `loki`", paper="2.7 x", ours=times(scaled[THEIRS] / hardware_rps) if THEIRS in scaled else "-"),
            Line(
                figure="optimizers that serve more than `headrace` at that accuracy",
                paper="-",
                ours=", ".join(better) or "none",
                must="none",
                met=not better,
            ),
            *self._curve_lines(curve),
        ]
        table = [(times(multiple), name, f"{multiple * hardware_rps:.0f}", *_cells(row)) for (multiple, name), row in curve.items()]
        table += [(times(gain), name, f"{scaled[OURS]:.0f}", *_cells(row)) for name, row in at_ours.items()]
        scenario = bench.scenario(SCENARIO)
        return Measured(
            lines=tuple(lines),
            columns=("demand", "optimizer", "requests/s", "attainment", "accuracy, of the best"),
            table=tuple(table),
            charts=(self._chart(curve),),
            facts=(
                f"hardware scaling alone serves {hardware_rps:.0f} requests/s, headrace {scaled[OURS]:.0f}; seed {seeds[0]}",
                f"offered: {offered_in_words(scenario)} and what is searched for",
                f"provenance: {scenario.provenance}",
            ),
        )

    def _curve(self, bench: Bench, hardware_rps: float, names: list[str]) -> dict[tuple[float, str], Row]:
        variations = {
            f"{multiple} {name}": {"control.optimizer": name, RATE: repr(hardware_rps * multiple)}
            for multiple in CURVE
            for name in names
            if name != HARDWARE or multiple <= 2.0
        }
        rows = bench.rows(SCENARIO, variations, bench.seeds[:1])
        return {(float(label.split()[0]), label.split()[1]): row for label, row in rows.items()}

    def _curve_lines(self, curve: dict[tuple[float, str], Row]) -> list[Line]:
        found: list[Line] = []
        for multiple, accuracy in PAPER_CURVE.items():
            row = curve.get((multiple, OURS))
            ours = "-" if row is None or row.attainment is None else f"{part(of_best(row))} ({percent(row.attainment.mean)} attained)"
            found.append(Line(figure=f"accuracy at {multiple:g} x the demand", paper=part(accuracy), ours=ours))
        return found

    def _chart(self, curve: dict[tuple[float, str], Row]) -> Chart:
        names = list(dict.fromkeys(name for _, name in curve))
        points = {name: [multiple for multiple, other in curve if other == name] for name in names}
        lines = [Drawn(name=name, x=tuple(points[name]), y=tuple(of_best(curve[multiple, name]) for multiple in points[name])) for name in names]
        paper = Drawn(name="Loki, paper", x=tuple(PAPER_CURVE), y=tuple(PAPER_CURVE.values()), low=tuple(PAPER_CURVE.values()))
        return Chart(
            key=self.name,
            title="Accuracy against demand, 20 GTX 1080 Ti",
            x_label="demand / what hardware scaling serves",
            y_label="accuracy (served) / best",
            unit="accuracy",
            lines=(*lines, paper),
        )


def of_best(row: Row) -> float:
    """Accuracy served as a part of the best."""
    return row.accuracy_served.mean / row.accuracy_best if row.accuracy_served is not None and row.accuracy_best else 0.0


def _cells(row: Row) -> tuple[str, str]:
    return "-" if row.attainment is None else percent(row.attainment.mean), part(of_best(row))
