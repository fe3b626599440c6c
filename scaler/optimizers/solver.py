"""Mixed-integer linear programs, solved by HiGHS with one thread, a seed and a time limit: the same program gives the same answer."""

# HiGHS's Python types are partly unknown to the checker; this is the one file that touches it.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from typing import Any

import highspy
import msgspec
import numpy as np

from scaler.optimizers.optimizer import Limits

OPTIMAL, FEASIBLE, INFEASIBLE, UNKNOWN = "optimal", "feasible", "infeasible", "unknown"
SHORTEST_S = 0.01
"""With less time than this HiGHS is not even asked."""
GAP = 1e-4
NODES_MAX = 2_147_483_647
STEADY_NODES = 200
"""Branch-and-bound nodes where the end must not depend on the machine's speed: about what a second is enough for."""
RESERVED = 0.3
"""HiGHS looks at the clock now and then only."""
RESERVED_EACH_S = 30e-6


class Solved(msgspec.Struct, frozen=True):
    """What the solver found; `values` by column, empty where it has none."""

    status: str
    """optimal (within the gap), feasible (time ran out), infeasible, or unknown (time ran out before anything was found)."""
    values: tuple[float, ...] = ()
    objective: float = 0.0
    gap: float | None = None
    """Relative distance to the best bound; None of a linear program, or where unknown."""

    @property
    def found(self) -> bool:
        return bool(self.values)


class SolverTime:
    """What is left for solving when there must be time to finish: a part of the limit, and some for each worker."""

    __slots__ = ("_limits", "_reserve_s", "patience", "seed")

    def __init__(self, limits: Limits, workers: int) -> None:
        self._limits, self.seed, self.patience = limits, limits.seed, limits.patience
        self._reserve_s = limits.left_s * RESERVED + workers * RESERVED_EACH_S

    @property
    def left_s(self) -> float:
        return max(self._limits.left_s - self._reserve_s, 0.0)


class Program:
    """Maximize a linear objective. Columns are added first, rows name them by the number that `column` gave."""

    def __init__(self) -> None:
        self._costs: list[float] = []
        self._column_bounds: list[tuple[float, float]] = []
        self._integer: list[bool] = []
        self._row_bounds: list[tuple[float, float]] = []
        self._starts: list[int] = [0]
        self._indices: list[int] = []
        self._coefficients: list[float] = []

    @property
    def columns(self) -> int:
        return len(self._costs)

    @property
    def rows(self) -> int:
        return len(self._row_bounds)

    @property
    def integers(self) -> int:
        return sum(self._integer)

    def column(self, gain: float = 0.0, lower: float = 0.0, upper: float = inf, *, integer: bool = False) -> int:
        """A variable; returns its number."""
        self._costs.append(gain)
        self._column_bounds.append((lower, upper))
        self._integer.append(integer)
        return len(self._costs) - 1

    def row(self, terms: Mapping[int, float], lower: float = -inf, upper: float = inf) -> int:
        """lower <= sum of the terms <= upper; returns its number."""
        self._row_bounds.append((lower, upper))
        for column, coefficient in terms.items():
            if coefficient:
                self._indices.append(column)
                self._coefficients.append(coefficient)
        self._starts.append(len(self._indices))
        return len(self._row_bounds) - 1

    def set_gain(self, column: int, gain: float) -> None:
        """Another objective over the same columns."""
        self._costs[column] = gain

    def copy(self) -> Program:
        """Changes of bounds and gains in the copy do not come back; rows are shared."""
        other = Program()
        other.__dict__.update(self.__dict__ | {"_costs": list(self._costs), "_column_bounds": list(self._column_bounds)})
        return other

    def relaxed(self) -> Program:
        """A copy without integers: its optimum bounds this one's."""
        other = self.copy()
        other.__dict__["_integer"] = [False] * self.columns
        return other

    def clear_gains(self) -> None:
        """An objective of nothing."""
        self._costs = [0.0] * self.columns

    def set_bounds(self, column: int, lower: float, upper: float) -> None:
        """Other bounds of a column."""
        self._column_bounds[column] = (lower, upper)

    def solve_in(self, time: SolverTime, part: float, *, gap: float = GAP, start: Sequence[float] = ()) -> Solved:
        """Solve in this part of the time that is left when the solver has the program; as `solve`."""
        nodes_max = STEADY_NODES if time.patience > 1.0 else NODES_MAX
        model = self._model() if time.left_s * part >= SHORTEST_S else None
        time_s = time.left_s * part * time.patience
        return self._run(model, {"time_limit": time_s, "random_seed": time.seed, "mip_rel_gap": gap, "mip_max_nodes": nodes_max}, start)

    def solve(self, *, time_s: float, seed: int, gap: float = GAP, start: Sequence[float] = (), nodes_max: int = NODES_MAX) -> Solved:
        """`start`: a solution to begin with (one value per column); what is not feasible in it is ignored. `nodes_max`: branch-and-bound nodes,
        an end that does not depend on the machine's speed."""
        model = self._model() if time_s >= SHORTEST_S else None
        return self._run(model, {"time_limit": time_s, "random_seed": seed, "mip_rel_gap": gap, "mip_max_nodes": nodes_max}, start)

    def _run(self, model: Any, options: dict[str, float], start: Sequence[float]) -> Solved:
        """`model`: None where there was no time to make it."""
        if not self.columns:
            return Solved(OPTIMAL)
        if model is None or options["time_limit"] < SHORTEST_S:
            return Solved(UNKNOWN)
        highs = highspy.Highs()
        for name, value in (
            ("output_flag", False),
            ("threads", 1),
            ("parallel", "off"),
            *(options | {"random_seed": options["random_seed"] % 2_147_483_647}).items(),
        ):
            highs.setOptionValue(name, value)
        highs.passModel(model)
        if len(start) == self.columns:
            given = highspy.HighsSolution()
            given.col_value = list(start)
            highs.setSolution(given)
        highs.run()
        return _solved(highs, mixed=any(self._integer))

    def _model(self) -> Any:
        model = highspy.HighsLp()
        model.num_col_ = self.columns
        model.num_row_ = self.rows
        model.sense_ = highspy.ObjSense.kMaximize
        model.col_cost_ = np.array(self._costs)
        model.col_lower_ = np.array([lower for lower, _ in self._column_bounds])
        model.col_upper_ = np.array([upper for _, upper in self._column_bounds])
        model.row_lower_ = np.array([lower for lower, _ in self._row_bounds])
        model.row_upper_ = np.array([upper for _, upper in self._row_bounds])
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self._starts, np.int32)
        model.a_matrix_.index_ = np.array(self._indices, np.int32)
        model.a_matrix_.value_ = np.array(self._coefficients)
        if any(self._integer):
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            model.integrality_ = [kinds[integer] for integer in self._integer]
        return model


def _solved(highs: Any, *, mixed: bool) -> Solved:
    status, information = highs.getModelStatus(), highs.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Solved(INFEASIBLE)
    if information.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Solved(UNKNOWN)
    gap = float(information.mip_gap) if mixed and isfinite(information.mip_gap) else None
    found = OPTIMAL if status == highspy.HighsModelStatus.kOptimal else FEASIBLE
    return Solved(found, tuple(highs.getSolution().col_value), float(information.objective_function_value), gap)
