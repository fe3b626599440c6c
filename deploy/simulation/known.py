"""What names in a scenario may stand for: model families, traces, optimizers and forecasts."""

from __future__ import annotations

from deploy.families.known import family
from deploy.simulation.scenario_files import Known
from deploy.traces import read_trace
from scaler.optimizers.registry import optimizer_names
from scaler.policy.forecasting.forecaster import FORECASTERS


def trace_provenance(file: str, column: str) -> str:
    """Where a trace comes from, and what was done to it. Raises InvalidTrace."""
    report = read_trace(file, column).report
    name = report.source.replace("\\", "/").rpartition("/")[2]
    recorded = f"{report.arrivals:,} arrivals in {report.span_s:,.0f} s"
    return "; ".join([f"trace {report.provenance or name} ({recorded})", *report.warnings])


def known() -> Known:
    """As it is installed here: plug-ins are looked up now, and imported by whoever runs them."""
    return Known(families=family, check_trace=trace_provenance, optimizers=tuple(optimizer_names()), forecasts=tuple(FORECASTERS))
