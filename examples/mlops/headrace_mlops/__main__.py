"""`python -m headrace_mlops drift|adversarial ENDPOINT`: a detector over the taps of an endpoint, until it is stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click
import numpy as np

from deploy.commands.command import Command, Group, option
from deploy.commands.output import Output
from deploy.configuration import Connection
from deploy.connections import open_log
from headrace_mlops.adversarial import SqueezingDetector
from headrace_mlops.dense_network import DenseNetwork
from headrace_mlops.watching import AttackDetector, Detector, DriftDetector, watch

FASHION = Path(__file__).resolve().parents[2] / "fashion"


@click.group(cls=Group)
def detectors() -> None:
    """Detectors over Headrace's taps. Alerts go to {p}.alerts: `headrace get alerts`."""


@detectors.command(cls=Command)
@click.argument("endpoint")
@option("--input", "input_name", default="image", show_default=True, help="Input whose values are watched.")
@option("--output", "output_name", default="probs", show_default=True, help="Output with class probabilities.")
@click.option("--beginning", is_flag=True, help="From what the taps still hold, not from now on.")
def drift(connection: Connection, output: Output, endpoint: str, input_name: str, output_name: str, *, beginning: bool) -> None:
    """Watch inputs and confidences for drift (river: ADWIN, Page-Hinkley, KSWIN)."""
    _run(connection, output, DriftDetector(endpoint, input_name, output_name), beginning=beginning)


@detectors.command(cls=Command)
@click.argument("endpoint")
@option("--input", "input_name", default="image", show_default=True, help="Input that is looked at.")
@option("--model", type=click.Path(exists=True, path_type=Path), default=FASHION / "models" / "mlp128.onnx", help="The dense network to squeeze for.")
@option("--clean", type=click.Path(exists=True, path_type=Path), default=FASHION / "test-2000.npz", help="Clean `images` (.npz) for the thresholds.")
@click.option("--beginning", is_flag=True, help="From what the taps still hold, not from now on.")
def adversarial(connection: Connection, output: Output, endpoint: str, *, beginning: bool, **options: Any) -> None:
    """Flag images that look attacked (feature squeezing)."""
    with np.load(options["clean"]) as arrays:
        detector = SqueezingDetector(DenseNetwork(options["model"]), arrays["images"])
    _run(connection, output, AttackDetector(endpoint, options["input_name"], detector), beginning=beginning)


def _run(connection: Connection, output: Output, detector: Detector, *, beginning: bool) -> None:
    async def watched() -> None:
        async with open_log(connection) as log:
            await watch(
                log,
                connection.need_kafka(),
                connection.names,
                detector,
                told=lambda alert: output.say(f"{alert.kind}: {alert.message}"),
                beginning=beginning,
            )

    asyncio.run(watched())


if __name__ == "__main__":
    detectors()
