"""`make drift-demo`: fashion traffic over genuine Kafka shifts and is then attacked; river, squeezing and evidently see it, as is checked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import click
import numpy as np

from broker.kafka import KafkaLog
from headrace_mlops.adversarial import SqueezingDetector
from headrace_mlops.dense_network import DenseNetwork
from headrace_mlops.events import Observed, follow
from headrace_mlops.shifts import SHIFTS
from headrace_mlops.traffic import Phase, Script, phases, publish
from headrace_mlops.watching import CLIENT_ID, AttackDetector, DriftDetector
from schemas.alerts import Alert, alerts_spec, alerts_topic, encode_alert
from schemas.names import Names

HERE = Path(__file__).resolve().parents[1]
FASHION = HERE.parent / "fashion"
ENDPOINT = "watched"
WITHIN = 500
"""Requests after the shift until which it must be flagged."""
PATIENCE_S = 120.0


class Stack:
    """A stack of this folder's own, with a tap to Parquet beside the one to Kafka."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parquet: subprocess.Popen[bytes] | None = None

    def headrace(self, *arguments: str) -> dict[str, Any]:
        """Run a command; its result."""
        argv = [sys.executable, "-m", "deploy.cli", *arguments, "--json"]
        done = subprocess.run(argv, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(done.returncode)
        return json.loads(done.stdout.strip().rpartition("\n")[2])

    def up(self, files: list[Path]) -> dict[str, Any]:
        """Start all; the stack's state."""
        self.headrace("up", "--detach", *map(str, files))
        argv = [sys.executable, "-m", "deploy.cli", "taps", "--parquet", str(self.folder / "taps"), "--log-level", "warning"]
        self._parquet = subprocess.Popen(argv, cwd=self.folder)
        return json.loads((self.folder / ".headrace" / "stack.json").read_text())

    def end_parquet(self) -> None:
        """What it took is in files when it has ended."""
        if self._parquet is not None:
            self._parquet.terminate()
            self._parquet.wait(60)
            self._parquet = None

    def down(self) -> None:
        """End everything."""
        self.end_parquet()
        self.headrace("down")


class Watching:
    """Both detectors over one stream; what they told, and when."""

    def __init__(self, detector: SqueezingDetector) -> None:
        self.drift = DriftDetector(ENDPOINT, "image", "probs")
        self.attack = AttackDetector(ENDPOINT, "image", detector)
        self.order: dict[str, int] = {}
        """Number of each request, in the order of the answers."""
        self.alerts: list[Alert] = []

    def observe(self, observed: Observed) -> list[Alert]:
        """What follows from one request."""
        self.order[observed.id] = len(self.order)
        found = [*self.drift.observe(observed), *self.attack.observe(observed)]
        self.alerts += found
        return found


async def watch(log: KafkaLog, kafka: str, names: Names, watching: Watching) -> None:
    """Until cancelled."""
    await log.create_topics([alerts_spec(names)])
    writer = log.writer(CLIENT_ID)
    await writer.start()
    try:
        async for batch in follow(log, kafka, names, ENDPOINT, beginning=True):
            for alert in [] if isinstance(batch, int) else [alert for one in batch for alert in watching.observe(one)]:
                await writer.write(alerts_topic(names), 0, [(alert.endpoint.encode(), encode_alert(alert), ())])
                click.echo(f"  {alert.kind}: {alert.message}")
    finally:
        await writer.close()


async def play(state: dict[str, Any], script: list[Phase], watching: Watching, rate_rps: float) -> None:
    """All phases, one after the other, each watched to its end."""
    names = Names(state["prefix"])
    log = KafkaLog(state["kafka"])
    task = asyncio.create_task(watch(log, state["kafka"], names, watching))
    count = 0
    try:
        for phase in script:
            click.echo(f"{len(phase.images)} requests, {phase.name}")
            await publish(log, names, ENDPOINT, phase, rate_rps)
            until_s = time.monotonic() + PATIENCE_S
            count += len(phase.images)
            while len(watching.order) < count:
                if task.done():
                    task.result()
                if time.monotonic() > until_s:
                    raise SystemExit(f"the taps delivered {len(watching.order)} of {count} requests within {PATIENCE_S:.0f} s")
                await asyncio.sleep(0.2)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await log.close()


def judged(watching: Watching, script: list[Phase]) -> dict[str, Any]:
    """When the shift was flagged, what was flagged before, and how many attacked images were found."""
    clean, shift, mixed = script
    begins = len(clean.images)
    drifts = [alert for alert in watching.alerts if alert.kind == "drift"]
    before = [alert for alert in drifts if alert.evidence["request"] < begins]
    after = [alert.evidence["request"] - begins for alert in drifts if begins <= alert.evidence["request"] < begins + len(shift.images)]
    flags = np.array([watching.attack.flagged[f"{mixed.name}-{number}"] for number in range(len(mixed.images))])
    clean_flags = [watching.attack.flagged[f"{clean.name}-{number}"] for number in range(len(clean.images))]
    return {
        "alarms_before": len(before),
        "flagged_after": min(after, default=None),
        "flagged_by": sorted({f"{alert.evidence['detector']} on {alert.evidence['feature']}" for alert in drifts if alert not in before}),
        "attack_recall": round(float(flags[mixed.attacked].mean()), 4),
        "attack_false_alarms": round(float(np.concatenate([flags[~mixed.attacked], clean_flags]).mean()), 4),
        "attack_alerted": any(alert.kind == "adversarial" for alert in watching.alerts),
    }


def page(folder: Path, python: Path, script: list[Phase]) -> dict[str, Any] | None:
    """Evidently's page over the Parquet rows, by the interpreter of its environment; None where that is not there."""
    if not python.exists():
        click.echo(f"no evidently page: {python} is not there (`make mlops-env`)")
        return None
    current = len(script[1].images) + len(script[2].images)
    argv = [python, "-m", "headrace_mlops.report", folder / "taps", folder / "drift.html", "--endpoint", ENDPOINT, "--current", str(current)]
    done = subprocess.run([*map(str, argv)], env={"PYTHONPATH": str(HERE)}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def broken(found: dict[str, Any], report: dict[str, Any] | None) -> list[str]:
    """What was promised and does not hold."""
    promises = {
        f"{found['alarms_before']} drift alarms before the shift": found["alarms_before"] == 0,
        f"the shift was flagged after {found['flagged_after']} requests": found["flagged_after"] is not None and found["flagged_after"] <= WITHIN,
        f"{found['attack_recall']:.0%} of the attacked images were found": found["attack_recall"] >= 0.8,
        f"{found['attack_false_alarms']:.1%} of the clean images were flagged": found["attack_false_alarms"] <= 0.05,
        f"evidently's page says {report}": report is None or bool(report["drifted"]),
    }
    return [what for what, holds in promises.items() if not holds]


@click.command()
@click.option("--shift", type=click.Choice(SHIFTS), default="rotation", show_default=True)
@click.option("--rate", "rate_rps", type=click.FloatRange(1.0), default=200.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="For the stack, the Parquet files and the page; default: a new one.")
@click.option("--report-python", type=click.Path(path_type=Path), default=Path(".venv-mlops/bin/python"), show_default=True)
def main(shift: str, rate_rps: float, seed: int, folder: Path | None, report_python: Path) -> None:
    """3,000 requests with garments, 600 that are turned or brighter, 400 of which half are attacked; everything over genuine Kafka."""
    folder = (folder or Path(mkdtemp(prefix="headrace-drift-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    network = DenseNetwork(FASHION / "models" / "mlp128.onnx")
    with np.load(FASHION / "test-2000.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    script = phases(images, labels, network, shift, Script(), seed)
    watching = Watching(SqueezingDetector(network, images[: len(images) // 2]))
    stack = Stack(folder)
    try:
        state = stack.up([FASHION / "task.yaml", HERE / "watched.yaml"])
        asyncio.run(play(state, script, watching, rate_rps))
        shown = stack.headrace("get", "alerts", "--endpoint", ENDPOINT)["count"]
        stack.end_parquet()
    finally:
        stack.down()
    report = page(folder, report_python.absolute(), script)
    found = judged(watching, script) | {"alerts_in_the_topic": shown, "report": report, "page": str(folder / "drift.html")}
    click.echo(json.dumps(found, indent=2))
    problems = broken(found, report)
    for problem in problems:
        click.echo(f"not as promised: {problem}", err=True)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
