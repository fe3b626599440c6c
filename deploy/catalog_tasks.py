"""What a YAML document of `kind: task` must say: a task with its variants, each an ONNX file or a Python callable."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from deploy.suggestions import did_you_mean
from deploy.yaml_documents import Fields, as_fields, line_of
from graphs.stage import COMBINE_TASK, COMBINE_VARIANT
from schemas.catalog import TaskSpec, TensorSpec, VariantSpec, split_variant_key
from schemas.datatypes import DATATYPES
from schemas.errors import ModelRefused
from schemas.limits import Limits
from schemas.names import ACCELERATORS, NAME
from workers.models import model_path
from workers.onnx_files import read_variant

TASK_KEYS = ("kind", "name", "variants")
VARIANT_KEYS = ("name", "file", "sha256", "call", "call_ms_max", "accuracy", "accelerators", "inputs", "outputs", "batch_size_max")
FILE_KEYS = ("file", "sha256", "batch_size_max")
"""Of a variant that is a model: beside `call` they say nothing."""
TENSOR_KEYS = ("name", "datatype", "shape")
VARIANTS_MAX = 256
BATCH_SIZE_MAX = 32
"""Where a variant states none."""
CALL_MS_MAX = 10_000
CALL_ACCURACY = 1.0
"""A transform takes nothing from a path's accuracy."""
CALL_ACCELERATORS = ("cpu",)
RESERVED = "headrace."
"""How the names of built-in tasks begin."""
COMBINE = TaskSpec(
    name=COMBINE_TASK,
    variants=(
        VariantSpec(
            name=split_variant_key(COMBINE_VARIANT)[1], call="graphs.combiners:combine", accuracy=CALL_ACCURACY, accelerators=CALL_ACCELERATORS
        ),
    ),
)
"""Merges what the members of an ensemble answer; applied with the first graph that has one."""
SHA256 = re.compile(r"^[0-9a-f]{64}$")
CALL = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


def read_name(fields: Fields, key: str, limits: Limits) -> str | None:
    """The name of something in the catalog; absent or no name is a problem."""
    name = fields.text(key)
    if name is None:
        if key not in fields:
            fields.missing(key)
        return None
    if is_name(name, limits):
        return name
    fields.problem(key, f"{name[:150]!r} is not a name: letters, digits, `.`, `_`, `-`, a letter or digit first, {limits.name_bytes_max} at most")
    return None


def is_name(name: str, limits: Limits) -> bool:
    """Whether something in the catalog may be called this."""
    return NAME.fullmatch(name) is not None and len(name) <= limits.name_bytes_max


class TaskReader:
    """Reads tasks one by one; `models` collects where each model file (by SHA-256) lies."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.models: dict[str, Path] = {}

    def read(self, fields: Fields) -> tuple[str | None, tuple[VariantSpec, ...]]:
        """(name, variants without problems); everything wrong is reported."""
        name = read_name(fields, "name", self.limits)
        if name is not None and name.startswith(RESERVED):
            fields.problem("name", f"task {name!r}: names that begin with `{RESERVED}` are those of built-in tasks")
        nodes = fields.items("variants")
        if not nodes:
            fields.missing("variants")
        elif len(nodes) > VARIANTS_MAX:
            fields.problem("variants", f"{len(nodes)} variants, the limit is {VARIANTS_MAX}")
        variants: dict[str, VariantSpec] = {}
        for node in (nodes or [])[:VARIANTS_MAX]:
            variant_fields = as_fields(fields.source, node, "a variant", VARIANT_KEYS)
            variant = None if variant_fields is None else self._variant(variant_fields)
            if variant is None:
                continue
            if variant.name in variants:
                fields.source.add(line_of(node), f"variant {variant.name!r} stands twice in the task")
            variants[variant.name] = variant
        return name, tuple(variants.values())

    def _variant(self, fields: Fields) -> VariantSpec | None:
        if "call" in fields:
            return self._python_variant(fields)
        name = read_name(fields, "name", self.limits)
        accuracy = fields.number("accuracy", 0.0, 1.0)
        if "accuracy" not in fields:
            fields.missing("accuracy")
        if "call_ms_max" in fields:
            fields.problem("call_ms_max", "`call_ms_max` says how long a `call` may take, and the variant has none")
        model = self._model(fields)
        accelerators = self._accelerators(fields)
        batch_size_max = fields.integer("batch_size_max", 1, self.limits.rows_max)
        inputs, outputs = self._tensors(fields, "inputs"), self._tensors(fields, "outputs")
        if name is None or accuracy is None or model is None:
            return None
        file, sha256 = model
        spec = VariantSpec(
            name=name,
            file=file,
            sha256=sha256,
            accuracy=accuracy,
            accelerators=accelerators,
            inputs=inputs,
            outputs=outputs,
            batch_size_max=batch_size_max or BATCH_SIZE_MAX,
        )
        try:
            # What the file leaves out (inputs, outputs) comes from the model; what it says must fit it.
            return read_variant(spec, self.models[sha256], bytes_max=self.limits.model_bytes_max).spec
        except ModelRefused as refused:
            fields.problem("file", str(refused))
            return None

    def _python_variant(self, fields: Fields) -> VariantSpec | None:
        for key in FILE_KEYS:
            if key in fields:
                fields.problem(key, f"`{key}` is of a model file, and the variant has `call`: it is one or the other")
        name, call = read_name(fields, "name", self.limits), self._call(fields)
        accuracy = fields.number("accuracy", 0.0, 1.0)
        call_ms_max = fields.integer("call_ms_max", 1, self.limits.timeout_ms_max)
        if self._accelerators(fields) != CALL_ACCELERATORS:
            fields.problem("accelerators", "a `call` runs on CPU workers: leave `accelerators` out")
        inputs, outputs = self._tensors(fields, "inputs"), self._tensors(fields, "outputs")
        if name is None or call is None:
            return None
        return VariantSpec(
            name=name,
            call=call,
            call_ms_max=call_ms_max or CALL_MS_MAX,
            accuracy=CALL_ACCURACY if accuracy is None else accuracy,
            accelerators=CALL_ACCELERATORS,
            inputs=inputs,
            outputs=outputs,
        )

    def _call(self, fields: Fields) -> str | None:
        """`package.module:function`, or the plain name of an entry point: what it stands for is known where it is installed, on the workers."""
        call = fields.text("call")
        if call is None or CALL.match(call) or (NAME.match(call) and "." not in call):
            return call
        module, _, function = call.rpartition(".")
        near = f"; did you mean {f'{module}:{function}'!r}?" if CALL.match(f"{module}:{function}") else ""
        fields.problem("call", f"{call[:150]!r} is neither `package.module:function` nor the name of an entry point{near}")
        return None

    def _model(self, fields: Fields) -> tuple[str, str] | None:
        """(file as stated, SHA-256); the file lies relative to the YAML file, and its content is what the hash says."""
        file, stated = fields.text("file"), fields.text("sha256")
        if file is None:
            if "file" not in fields:
                fields.source.add(fields.line, f"{fields.what} needs `file`, or `call` for Python")
            return None
        try:
            path = model_path(fields.source.path.parent, file)
            found = self._digest(path)
        except ModelRefused as refused:
            fields.problem("file", str(refused))
            return None
        if stated == found:
            self.models[found] = path
            return file, found
        if "sha256" not in fields:
            fields.problem("file", f"the variant needs `sha256`: {path.name} has sha256: {found}")
        elif stated is not None and not SHA256.match(stated):
            fields.problem("sha256", f"`sha256` is 64 lower-case hexadecimal digits; {path.name} has {found}")
        elif stated is not None:
            fields.problem("sha256", f"{path.name} is another file than stated: its SHA-256 is {found}")
        return None

    def _digest(self, path: Path) -> str:
        if not path.is_file():
            raise ModelRefused(f"there is no file {path}")
        if path.stat().st_size > self.limits.model_bytes_max:
            raise ModelRefused(f"{path} has {path.stat().st_size} bytes, the limit is {self.limits.model_bytes_max}")
        try:
            with path.open("rb") as opened:
                return hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise ModelRefused(f"{path} cannot be read: {error.strerror}") from None

    def _accelerators(self, fields: Fields) -> tuple[str, ...]:
        stated = fields.texts("accelerators")
        if stated is None:
            return ("cpu",)
        if not stated:
            fields.problem("accelerators", f"`accelerators` is empty: name some of {', '.join(ACCELERATORS)}")
        for name, line in stated:
            if name not in ACCELERATORS:
                fields.source.add(line, f"unknown accelerator {name!r}{did_you_mean(name, ACCELERATORS)}")
        return tuple(dict.fromkeys(name for name, _ in stated))

    def _tensors(self, fields: Fields, key: str) -> tuple[TensorSpec, ...]:
        nodes = fields.items(key) or []
        if len(nodes) > self.limits.tensors_max:
            fields.problem(key, f"{len(nodes)} {key}, the limit is {self.limits.tensors_max}")
        found: dict[str, TensorSpec] = {}
        for node in nodes[: self.limits.tensors_max]:
            tensor_fields = as_fields(fields.source, node, f"a tensor of `{key}`", TENSOR_KEYS)
            tensor = None if tensor_fields is None else self._tensor(tensor_fields)
            if tensor is not None and tensor.name in found:
                fields.source.add(line_of(node), f"tensor {tensor.name!r} stands twice in `{key}`")
            elif tensor is not None:
                found[tensor.name] = tensor
        return tuple(found.values())

    def _tensor(self, fields: Fields) -> TensorSpec | None:
        for key in TENSOR_KEYS:
            if key not in fields:
                fields.missing(key)
        name, datatype, shape = fields.text("name"), fields.text("datatype"), fields.integers("shape")
        if datatype is not None and datatype not in DATATYPES:
            fields.problem("datatype", f"unknown datatype {datatype!r}{did_you_mean(datatype.upper(), DATATYPES)}")
        if shape is not None and not 1 <= len(shape) <= self.limits.rank_max:
            fields.problem("shape", f"`shape` has {len(shape)} axes: it has 1 to {self.limits.rank_max}, the first counts rows")
        elif shape is not None and any(axis != -1 and axis < 1 for axis in shape):
            fields.problem("shape", f"`shape` {shape} has an axis that is neither -1 (free) nor 1 or more")
        if name is None or datatype is None or shape is None:
            return None
        return TensorSpec(name, datatype, tuple(shape))
