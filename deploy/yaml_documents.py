"""YAML files read with suspicion: located fields, every problem of a file at once, nothing constructed, nothing expanded without bound.

Only the composer of ruamel.yaml runs (YAML 1.2): it yields nodes with line numbers, never objects, so no tag can start code.
"""

# ruamel.yaml ships no types for its nodes.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from ruamel.yaml import YAML, MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from deploy.suggestions import did_you_mean
from schemas.errors import CatalogError

FILE_BYTES_MAX = 1 << 20
DOCUMENTS_MAX = 1_000
FIELDS_MAX = 100_000
"""Fields and items read from one file: an alias is read each time that it is used, so this also ends an expansion bomb."""
PLAIN_DEPTH_MAX = 8
TAG = "tag:yaml.org,2002:"

Scalar = TypeVar("Scalar")
Number = TypeVar("Number", int, float)


class FieldsExhausted(Exception):
    """The file states (or its aliases expand to) more than is read from one file; the problem is already reported."""


class Problem(msgspec.Struct, frozen=True):
    """One thing wrong: where, and what would be right."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class Problems:
    """Collects what is wrong, so that one run tells everything."""

    def __init__(self) -> None:
        self.found: list[Problem] = []

    def add(self, file: str, line: int, message: str) -> None:
        problem = Problem(file, line, message)
        if problem not in self.found:
            self.found.append(problem)

    def raise_if_any(self) -> None:
        """Raises CatalogError with one line per problem."""
        if self.found:
            files = list(dict.fromkeys(problem.file for problem in self.found))
            ordered = sorted(self.found, key=lambda problem: (files.index(problem.file), problem.line))
            raise CatalogError("\n".join(map(str, ordered)))


class Source:
    """One file being read: where problems go, and how much may still be read."""

    def __init__(self, path: Path, problems: Problems) -> None:
        self.path = path
        self.problems = problems
        self._left = FIELDS_MAX

    def add(self, line: int, message: str) -> None:
        self.problems.add(str(self.path), line, message)

    def take(self, line: int) -> None:
        """Count one field or item. Raises FieldsExhausted when there are too many."""
        self._left -= 1
        if self._left < 0:
            self.add(line, f"more than {FIELDS_MAX} fields and items in one file (aliases count each time they are used)")
            raise FieldsExhausted


class Fields:
    """A mapping whose keys are checked against those known; every getter reports what is wrong and returns None then."""

    def __init__(self, source: Source, node: MappingNode, what: str, known: Iterable[str] | None) -> None:
        """`what` names the mapping in messages; `known` None takes any key (names chosen by the user)."""
        self.source = source
        self.what = what
        self.line = line_of(node)
        self._nodes: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = line_of(key_node)
            source.take(line)
            key = _key_text(key_node)
            if key is None:
                source.add(line, f"the keys of {what} are plain words")
            elif key in lines:
                source.add(line, f"key {key!r} stands twice in {what} (first on line {lines[key]})")
            elif known is not None and key not in known:
                source.add(line, f"unknown key {key!r} in {what}{did_you_mean(key, known)}")
            else:
                self._nodes[key] = value_node
            if key is not None:
                lines.setdefault(key, line)

    def __contains__(self, key: str) -> bool:
        return key in self._nodes

    def keys(self) -> list[str]:
        return list(self._nodes)

    def line_of(self, key: str) -> int:
        node = self._nodes.get(key)
        return self.line if node is None else line_of(node)

    def problem(self, key: str, message: str) -> None:
        """Report against the line of this key (or of the whole mapping where it is absent)."""
        self.source.add(self.line_of(key), message)

    def missing(self, key: str) -> None:
        self.source.add(self.line, f"{self.what} needs `{key}`")

    def text(self, key: str) -> str | None:
        """A scalar as it is written, so that 1.10 stays '1.10'."""
        return self._scalar(key, "text", _as_text)

    def number(self, key: str, low: float, high: float) -> float | None:
        value = self._scalar(key, "a number", _as_float)
        return self._ranged(key, value, low, high)

    def integer(self, key: str, low: int, high: int) -> int | None:
        value = self._scalar(key, "a whole number", _as_int)
        return self._ranged(key, value, low, high)

    def flag(self, key: str) -> bool | None:
        return self._scalar(key, "`true` or `false`", _as_bool)

    def value(self, key: str) -> Any:
        """Whatever stands there as plain values; None where the key is absent. For what is handed on and not read here."""
        node = self._nodes.get(key)
        return None if node is None else _plain(self.source, node)

    def is_mapping(self, key: str) -> bool:
        return isinstance(self._nodes.get(key), MappingNode)

    def mapping(self, key: str, what: str, known: Iterable[str] | None) -> Fields | None:
        node = self._nodes.get(key)
        if node is None:
            return None
        return as_fields(self.source, node, what, known)

    def items(self, key: str) -> list[Any] | None:
        """The nodes of a list; None where the key is absent or is no list."""
        node = self._nodes.get(key)
        if node is None:
            return None
        if not isinstance(node, SequenceNode):
            self.problem(key, f"`{key}` of {self.what} is a list")
            return None
        for item in node.value:
            self.source.take(line_of(item))
        return list(node.value)

    def texts(self, key: str) -> list[tuple[str, int]] | None:
        """A list of scalars with their lines."""
        nodes = self.items(key)
        if nodes is None:
            return None
        found = [(_as_text(node), line_of(node)) for node in nodes]
        for value, line in found:
            if value is None:
                self.source.add(line, f"`{key}` of {self.what} is a list of words")
        return [(value, line) for value, line in found if value is not None]

    def words(self, key: str) -> dict[str, str]:
        """A mapping of words to words, empty where the key is absent."""
        inner = self.mapping(key, f"`{key}` of {self.what}", None)
        found = {} if inner is None else {word: inner.text(word) for word in inner.keys()}  # noqa: SIM118 - not a mapping
        return {word: value for word, value in found.items() if value is not None}

    def numbers(self, key: str) -> list[float] | None:
        """A list of numbers; None where the key is absent or anything else stands in it."""
        nodes = self.items(key)
        if nodes is None:
            return None
        found = [_as_float(node) for node in nodes]
        if any(value is None for value in found):
            self.problem(key, f"`{key}` of {self.what} is a list of numbers")
            return None
        return [value for value in found if value is not None]

    def integers(self, key: str) -> list[int] | None:
        nodes = self.items(key)
        if nodes is None:
            return None
        found = [_as_int(node) for node in nodes]
        if any(value is None for value in found):
            self.problem(key, f"`{key}` of {self.what} is a list of whole numbers")
            return None
        return [value for value in found if value is not None]

    def _scalar(self, key: str, kind: str, read: Callable[[Any], Scalar | None]) -> Scalar | None:
        node = self._nodes.get(key)
        if node is None:
            return None
        value = read(node)
        if value is None:
            self.problem(key, f"`{key}` of {self.what} is {kind}, not {_describe(node)}")
        return value

    def _ranged(self, key: str, value: Number | None, low: float, high: float) -> Number | None:
        if value is None or low <= value <= high:
            return value
        self.problem(key, f"`{key}` of {self.what} is {value:.12g}: it lies in {low:.12g}..{high:.12g}")
        return None


def read_documents(path: Path, problems: Problems) -> list[tuple[Source, Any]]:
    """(source, root node) of each document of a file; empty documents are left out. Problems with the file as a whole are collected too."""
    source = Source(path, problems)
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            source.add(1, f"the file has {path.stat().st_size} bytes, the limit is {FILE_BYTES_MAX}")
            return []
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        source.add(1, f"the file is not UTF-8 text: {error.reason} at byte {error.start}")
        return []
    except OSError as error:
        source.add(1, f"cannot be read: {error.strerror}")
        return []
    return [(source, node) for node in _compose(text, source)]


def _compose(text: str, source: Source) -> list[Any]:
    found: list[Any] = []
    try:
        for node in YAML(typ="safe", pure=True).compose_all(text):
            if node is not None and not _is_empty(node):
                found.append(node)
            if len(found) > DOCUMENTS_MAX:
                source.add(line_of(node), f"more than {DOCUMENTS_MAX} documents in one file")
                break
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        source.add(1 if mark is None else mark.line + 1, f"not valid YAML: {error.problem or error.context}")
    except YAMLError as error:
        source.add(1, f"not valid YAML: {' '.join(str(error).split())}")
    except RecursionError:
        source.add(1, "nested too deeply")
    return found


def as_fields(source: Source, node: Any, what: str, known: Iterable[str] | None) -> Fields | None:
    """The fields of a mapping node; reports anything else and returns None."""
    if isinstance(node, MappingNode) and node.tag == TAG + "map":
        return Fields(source, node, what, known)
    source.add(line_of(node), f"{what} is a mapping of keys to values, not {_describe(node)}")
    return None


def line_of(node: Any) -> int:
    """Line of a node, from 1."""
    return node.start_mark.line + 1


def _is_empty(node: Any) -> bool:
    return isinstance(node, ScalarNode) and node.tag == TAG + "null"


def _key_text(node: Any) -> str | None:
    """Keys that look like numbers (a tenant called 42) stay words; `<<` stays `<<` and is an unknown key."""
    return node.value if isinstance(node, ScalarNode) and node.tag.startswith(TAG) else None


def _as_text(node: Any) -> str | None:
    known = isinstance(node, ScalarNode) and node.tag in (TAG + "str", TAG + "int", TAG + "float", TAG + "timestamp")
    return node.value if known else None


def _as_int(node: Any) -> int | None:
    if not (isinstance(node, ScalarNode) and node.tag == TAG + "int"):
        return None
    try:
        return int(node.value.replace("_", ""), 0 if node.value.lower().lstrip("+-").startswith(("0x", "0o", "0b")) else 10)
    except ValueError:
        return None


def _as_float(node: Any) -> float | None:
    if isinstance(node, ScalarNode) and node.tag == TAG + "float":
        try:
            value = float(node.value.replace("_", ""))
        except ValueError:
            return None
        return value if math.isfinite(value) else None
    whole = _as_int(node)
    return None if whole is None else float(whole)


def _as_bool(node: Any) -> bool | None:
    if not (isinstance(node, ScalarNode) and node.tag == TAG + "bool"):
        return None
    return node.value.lower() == "true"


def _plain(source: Source, node: Any, depth: int = PLAIN_DEPTH_MAX) -> Any:
    """Mappings, lists, words, numbers, truth values and null; other scalars (dates, tagged ones) stay as they are written."""
    source.take(line_of(node))
    if not depth:
        source.add(line_of(node), f"nested more than {PLAIN_DEPTH_MAX} levels deep")
        return None
    if isinstance(node, MappingNode):
        return {str(key.value): _plain(source, value, depth - 1) for key, value in node.value}
    if isinstance(node, SequenceNode):
        return [_plain(source, item, depth - 1) for item in node.value]
    for read in (_as_bool, _as_int, _as_float):
        value = read(node)
        if value is not None:
            return value
    return None if _is_empty(node) else str(node.value)


def lines_of(source: Source, node: Any, *, key: str = "", depth: int = PLAIN_DEPTH_MAX) -> dict[str, int]:
    """Line of every value below a node, by its keys and list positions joined by dots (`branches.0.weight`)."""
    source.take(line_of(node))
    found = {key: line_of(node)}
    if depth and isinstance(node, MappingNode):
        for name, value in node.value:
            found |= lines_of(source, value, key=f"{key}.{name.value}".removeprefix("."), depth=depth - 1)
    elif depth and isinstance(node, SequenceNode):
        for number, value in enumerate(node.value):
            found |= lines_of(source, value, key=f"{key}.{number}".removeprefix("."), depth=depth - 1)
    return found


def _describe(node: Any) -> str:
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    text = str(node.value)
    return repr(text if len(text) <= 40 else text[:40] + "...")
