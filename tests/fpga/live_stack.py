"""A whole stack over genuine Kafka with a processor and two emulated boards, each a process, and requests of which every answer is judged."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
from fpga_stage import FASHION_PACKAGE, ROOT, save_package

from broker.client import Client
from broker.log import TopicPartition
from broker.published import Request
from deploy.configuration import Connection
from deploy.local import stack as local
from deploy.local.boards import BoardPlan, plan_with_boards
from deploy.snapshots import read_alive
from deploy.stack_plan import options_within
from deploy.stack_start import start_and_apply
from schemas.terminal import decode_terminal
from workers.fpga.bitfile import read_bit
from workers.fpga.design import decode_design
from workers.fpga.package_file import read_variant_model

FASHION = ROOT / "examples" / "fashion"
FLOORS = (0.8, 0.88)
"""In turn: the second one is met by boards alone."""
TIMEOUT_MS, RATE_RPS, TOGETHER = 1_000, 50.0, 8
"""So many at once: a board that others think slower has its part of them, too."""
LATE_MS_MAX = 500.0
"""An answer may come so much after its deadline on a machine that is busy; promised are 20 ms, which other tests measure."""
CATALOG = """
kind: task
name: fashion
variants:
  - {{name: linear, file: linear.onnx, sha256: {linear}, accuracy: 0.8427, accelerators: [cpu], batch_size_max: 64,
     inputs: [{{name: image, datatype: UINT8, shape: [-1, 1, 28, 28]}}], outputs: [{{name: probs, datatype: FP32, shape: [-1, 10]}}]}}
  - {{name: mlp128-int8, file: mlp.onnx, sha256: {mlp}, accuracy: 0.8802, accelerators: [fpga], batch_size_max: 64,
     inputs: [{{name: image, datatype: UINT8, shape: [-1, 1, 28, 28]}}], outputs: [{{name: probs, datatype: FP32, shape: [-1, 10]}}]}}
---
kind: endpoint
name: fashion
task: fashion
defaults: {{min_accuracy: 0.8, timeout_ms: 1000}}
"""


class LiveStack:
    """What runs, and how it is broken."""

    def __init__(self, folder, kafka, redis, prefix, addresses):
        self.folder, self.kafka, self.redis, self.prefix = folder, kafka, redis, prefix
        self.addresses = addresses
        """Of boards, by the worker that drives each."""

    def client(self):
        return Client(kafka=self.kafka, redis=self.redis, prefix=self.prefix)

    @property
    def state(self):
        found = local.read(self.folder)
        assert found is not None
        return found

    def pid(self, name):
        """None while it is down."""
        return next((process.pid for process in self.state.processes if process.name == name), None)

    def signal(self, name, number):
        os.kill(self.pid(name), number)


@contextmanager
def running(folder, kafka, redis, prefix, files):
    boards = BoardPlan(fabrics=("numpy", "numpy"), python=Path(sys.executable), cache=folder / "cache", download_ms=30.0)
    options = options_within(folder, {"cpu": 1})
    plan = plan_with_boards(folder, options, boards, kafka=kafka, redis=redis, prefix=prefix)
    try:
        connection = Connection(kafka=kafka, redis=redis, prefix=prefix)
        asyncio.run(start_and_apply(plan, connection, files, options.models, on_progress=lambda _: None))
        addresses = {role.name: role.argv[role.argv.index("--board") + 1] for role in plan.roles if "--board" in role.argv}
        yield LiveStack(folder, kafka, redis, prefix, addresses)
    finally:
        for process in getattr(local.read(folder), "processes", ()):
            if process.is_alive():
                os.kill(process.pid, signal.SIGCONT)  # what is frozen does not end
        asyncio.run(local.stop(folder))


def fashion_files(folder):
    """The catalog of the fault tests: the processor's rung is quick and less accurate, so boards are preferred as long as they are there."""
    from hashlib import sha256

    digests = {}
    for name, source in (("linear", FASHION / "models" / "linear.onnx"), ("mlp", FASHION_PACKAGE)):
        data = source.read_bytes()
        (folder / f"{name}.onnx").write_bytes(data)
        digests[name] = sha256(data).hexdigest()
    (folder / "catalog.yaml").write_text(CATALOG.format(**digests))
    return [folder / "catalog.yaml"]


def floor_of(number):
    """Of the request with this number."""
    return FLOORS[number % len(FLOORS)]


def package_document(name, package, folder):
    """A task and an endpoint of this name for the package, in a catalog file; the file."""
    spec, _ = save_package(folder, package, name)
    tensors = {
        what: f"[{{name: {one.name}, datatype: {one.datatype}, shape: {list(one.shape)}}}]"
        for what, one in (("inputs", spec.inputs[0]), ("outputs", spec.outputs[0]))
    }
    file = folder / f"{name}.yaml"
    file.write_text(
        f"kind: task\nname: {name}\nvariants:\n"
        f"  - {{name: {name}, file: {spec.file}, sha256: {spec.sha256}, accuracy: 0.9, accelerators: [fpga], batch_size_max: 16,\n"
        f"     inputs: {tensors['inputs']}, outputs: {tensors['outputs']}}}\n"
        f"---\nkind: endpoint\nname: {name}\ntask: {name}\ndefaults: {{min_accuracy: 0.8, timeout_ms: 10000}}\n"
    )
    return file


async def worker_report(client, name):
    """What the worker says of itself now; None where it says nothing."""
    return (await read_alive(client.log, client.names)).workers.get(name)


class Load:
    """Steady requests, as long as it flows; then every one of them is judged."""

    def __init__(self, client):
        self._client = client
        with np.load(FASHION / "test-2000.npz") as data:
            self._images = data["images"]
        package = read_variant_model(FASHION_PACKAGE.read_bytes(), "mlp")
        self._network, self._post = decode_design(read_bit(package.bit).payload)[1], package.manifest.post
        self.asked = {}
        self.responses = {}

    def use(self, client):
        """Another one, where the first is closed."""
        self._client = client

    @asynccontextmanager
    async def flowing(self):
        task = asyncio.create_task(self._flow())
        try:
            yield self
        finally:
            self._stopped = True
            await task

    async def _flow(self):
        self._stopped, due_s, collecting = False, time.monotonic(), []
        while not self._stopped:
            numbers = range(len(self.asked), len(self.asked) + TOGETHER)
            names = await self._client.submit_many([self._request(number) for number in numbers])
            for number, name in zip(numbers, names, strict=True):
                self.asked[name] = number
                collecting.append(asyncio.create_task(self._collect(name)))
            due_s += TOGETHER / RATE_RPS
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
        await asyncio.gather(*collecting)

    def _request(self, number):
        inputs = {"image": self._images[number % 2_000][None]}
        return Request(endpoint="fashion", inputs=inputs, min_accuracy=floor_of(number), timeout_ms=TIMEOUT_MS)

    async def _collect(self, name):
        async for response in self._client.results([name], wait_ms=TIMEOUT_MS + 15_000):
            self.responses[name] = response

    def answered_by(self, address):
        return [name for name, response in self.responses.items() if response.completed and address in response.path[-1].device]

    async def check(self):
        """One outcome each, the same in the store and in the log; nothing wrong, nothing late. The outcomes, counted."""
        missing = [name for name in self.asked if name not in self.responses]
        assert not missing, f"{len(missing)} of {len(self.asked)} requests have no answer, as {missing[:3]}"
        first = await self._first_records()
        for name, response in self.responses.items():
            terminal, written_ms = first[name]
            assert terminal.outcome == response.outcome, name
            assert written_ms <= terminal.deadline_ms + LATE_MS_MAX, f"{name} was answered {written_ms - terminal.deadline_ms} ms late"
            if response.completed:
                assert terminal.finished_ms <= terminal.deadline_ms
                assert response.accuracy >= floor_of(self.asked[name])
                self._check_answer(response, self._images[self.asked[name] % 2_000])
        return Counter(response.outcome for response in self.responses.values())

    def _check_answer(self, response, image):
        """What a board answered is what its network gives, and not what a fault made of it."""
        if response.path[-1].accelerator == "fpga":
            assert "emulated board" in response.path[-1].device
            expected = self._post.apply(self._network.run(image.reshape(1, -1)))
            assert np.abs(response.outputs["probs"] - expected).max() < 1e-6

    async def _first_records(self):
        log, topic = self._client.log, self._client.names.responses
        reader = log.reader("judge")
        await reader.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(await log.partitions(topic))]
            await reader.assign(dict.fromkeys(partitions, "earliest"))
            ends = await reader.end_offsets(partitions)
            first = {}
            while any([await reader.position(partition) < ends[partition] for partition in partitions]):
                for records in (await reader.read(timeout_ms=100, records_max=1_000)).values():
                    for record in records:
                        first.setdefault(record.key.decode(), (decode_terminal(record.value), record.timestamp))
            return first
        finally:
            await reader.close()
