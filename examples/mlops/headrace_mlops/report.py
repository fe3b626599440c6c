"""`python -m headrace_mlops.report FOLDER PAGE`: evidently's drift page over the taps' Parquet rows: the latest requests against the first.

Runs in an environment of its own (`make mlops-env`), as evidently needs an older pandas than the rest: nothing of Headrace is imported here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as dataset
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset

from headrace_mlops.features import answer_features, input_features

DTYPES = {"UINT8": np.uint8, "FP32": np.float32, "FP64": np.float64}


def read(folder: Path, endpoint: str) -> pd.DataFrame:
    """One row of features for each completed request of the endpoint, in the order of their arrival."""
    rows = dataset.dataset(folder, format="parquet").to_table(
        columns=["id", "received_at", "variant", "inputs", "outputs"],
        filter=(dataset.field("endpoint") == endpoint) & (dataset.field("outcome") == "completed"),
    )
    rows = rows.sort_by("received_at").to_pylist()
    found = []
    for row in rows:
        if not row["inputs"] or not row["outputs"]:
            continue
        images, scores = (_array(tensors[0]) for tensors in (row["inputs"], row["outputs"]))
        values = {name: float(value.mean()) for name, value in (input_features(images) | answer_features(scores)).items()}
        found.append({**values, "class": str(int(scores[0].argmax())), "variant": row["variant"]})
    return pd.DataFrame(found)


def _array(tensor: dict) -> np.ndarray:
    return np.frombuffer(tensor["data"], DTYPES[tensor["datatype"]]).reshape(tensor["shape"])


def main() -> int:
    """Write the page, and say on stdout (JSON) which columns drifted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--endpoint", default="watched")
    parser.add_argument("--reference", type=int, default=2_000, metavar="ROWS", help="the first so many requests")
    parser.add_argument("--current", type=int, default=500, metavar="ROWS", help="the latest so many")
    options = parser.parse_args()
    rows = read(options.folder, options.endpoint)
    if len(rows) < options.reference + options.current:
        print(f"{options.folder} has {len(rows)} rows of {options.endpoint!r}: {options.reference + options.current} are needed", file=sys.stderr)
        return 1
    numbers = [name for name in rows.columns if name not in ("class", "variant")]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=["class", "variant"])
    reference, current = rows.iloc[: options.reference], rows.iloc[-options.current :]
    # PSI does not grow with the number of rows: 0.25 is the usual mark for a shift that matters.
    report = Report([DataDriftPreset(method="psi", threshold=0.25)])
    done = report.run(Dataset.from_pandas(current, definition), Dataset.from_pandas(reference, definition))
    done.save_html(str(options.page))
    values = [metric for metric in done.dict()["metrics"] if metric["config"]["type"].endswith("ValueDrift")]
    scores = {metric["config"]["column"]: round(float(metric["value"]), 4) for metric in values}
    print(json.dumps({"scores": scores, "drifted": sorted(name for name, score in scores.items() if score >= 0.25), "rows": len(rows)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
