# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false, reportUnknownLambdaType=false
# (simpleeval and arrays of any type are untyped)
"""Conditions of switches: a small part of Python's expressions, evaluated by simpleeval over tensors and request parameters."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from simpleeval import EvalWithCompoundTypes

CONDITION_CHARACTERS_MAX = 2_000
CONDITION_DEPTH_MAX = 40
NODES = "nodes"
"""`nodes["a-b"].probs`: for names of nodes that are no identifiers."""
PARAMETERS = ("request", "parameters")


def _filled(value: Any) -> Any:
    array = np.asarray(value)
    if not array.size:
        raise ValueError("the tensor has no elements")
    return array


def _over(function: Callable[[Any], Any]) -> Callable[..., Any]:
    """Over all elements of one tensor, or over several values."""
    return lambda *values: function(_filled(values[0] if len(values) == 1 else values)).item()


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) or np.ndim(value) else 1


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "max": _over(np.max),
    "min": _over(np.min),
    "mean": _over(np.mean),
    "sum": lambda value: np.sum(value).item(),
    "argmax": _over(np.argmax),
    "abs": abs,
    "size": _size,
}
"""`size`: rows of a tensor, characters of a text; `argmax`: over the flattened tensor."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
    ast.In: lambda value, values: value in values,
    ast.NotIn: lambda value, values: value not in values,
    ast.Not: operator.not_,
    ast.USub: operator.neg,
}
_STRUCTURE = (ast.Expr, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.IfExp, ast.And, ast.Or, ast.Load, ast.Subscript, ast.Tuple)
_CONSTANTS = (bool, int, float, str, type(None))


class Reference(msgspec.Struct, frozen=True):
    """`node.tensor`, `request.tensor` or (as `field`) `request.parameters.name`."""

    node: str
    tensor: str
    field: bool = False


class Condition:
    """A parsed condition; `references` are what it looks at."""

    def __init__(self, text: str, nodes: Callable[[str], bool]) -> None:
        """`nodes` tells whether there is a node of this name. Raises ValueError saying what does not parse."""
        self.text = text
        self.references: dict[Reference, str] = {}
        self.tree = _Reader(nodes, self.references).read(text)
        self._evaluator = EvalWithCompoundTypes(operators=_OPERATORS, functions=dict(FUNCTIONS), names={})

    def holds(self, values: Mapping[Reference, Any]) -> bool:
        """With the arrays and parameters that it refers to (BYTES as arrays of text). Raises ValueError with the reason where it cannot be told."""
        self._evaluator.names = {name: values[reference] for reference, name in self.references.items()}
        try:
            with np.errstate(all="raise", under="ignore"):
                return bool(self._evaluator.eval(self.text, previously_parsed=self.tree))
        # Whatever an expression over foreign values raises is the request's failure, not the dispatcher's.
        except Exception as error:
            raise ValueError(f"condition {self.text!r}: {error or type(error).__name__}") from error
        finally:
            self._evaluator.names = {}


class _Reader(ast.NodeTransformer):
    """Checks that nothing but the small language is there, and replaces each reference by one name: no attribute is ever looked up on a value."""

    def __init__(self, nodes: Callable[[str], bool], references: dict[Reference, str]) -> None:
        self._nodes = nodes
        self._references = references

    def read(self, text: str) -> ast.stmt:
        if len(text) > CONDITION_CHARACTERS_MAX:
            raise ValueError(f"the condition has {len(text)} characters, the limit is {CONDITION_CHARACTERS_MAX}")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"condition {text!r} does not parse: {error.msg if isinstance(error, SyntaxError) else 'too deep'}") from None
        if _depth(tree) > CONDITION_DEPTH_MAX:
            raise ValueError(f"the condition is nested more than {CONDITION_DEPTH_MAX} deep")
        return ast.Expr(self.visit(tree.body))

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, (*_STRUCTURE, *_OPERATORS)):
            raise _wrong(f"{type(node).__name__} ({ast.unparse(node)}) is not part of a condition")
        return super().generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, _CONSTANTS):
            raise _wrong(f"{ast.unparse(node)} is no number, text, True, False or None")
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            raise ValueError(f"{ast.unparse(node.func)} is no function of conditions: there are {', '.join(FUNCTIONS)}")
        if node.keywords or not node.args or any(isinstance(argument, ast.Starred) for argument in node.args):
            raise ValueError(f"{ast.unparse(node)}: functions take values, in order")
        return ast.Call(node.func, [self.visit(argument) for argument in node.args], [])

    def visit_Name(self, node: ast.Name) -> ast.AST:
        raise ValueError(f"{node.id} alone is no value: write {node.id}.tensor")

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        found = self._reference(_chain(node))
        if found is None:
            raise ValueError(f"{ast.unparse(node)} is no tensor of a node")
        return found

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        chain = _chain(node)
        found = self._reference(chain) if chain else None
        if found is not None:
            return found
        if isinstance(node.slice, ast.Slice):
            raise _wrong(f"{ast.unparse(node)}: a condition takes single elements, not slices")
        return ast.Subscript(self.visit(node.value), self.visit(node.slice), ast.Load())

    def _reference(self, chain: list[str] | None) -> ast.AST | None:
        reference = self._read(chain) if chain else None
        if reference is None:
            return None
        name = self._references.setdefault(reference, f"value_{len(self._references)}")
        return ast.Name(name, ast.Load())

    def _read(self, chain: list[str]) -> Reference | None:
        if tuple(chain[:2]) == PARAMETERS:
            return Reference("request", chain[2], field=True) if len(chain) == 3 else None
        if chain[0] == NODES and len(chain) == 3:
            return Reference(chain[1], chain[2])
        for length in range(len(chain) - 1, 0, -1):
            node = ".".join(chain[:length])
            if self._nodes(node):
                return Reference(node, ".".join(chain[length:]))
        # A name that nobody has is said by the one who knows the near misses.
        return Reference(".".join(chain[:-1]), chain[-1]) if len(chain) > 1 else None


def _wrong(message: str) -> ValueError:
    """For what is of the wrong kind in a text: to who wrote it that is a wrong value."""
    return ValueError(message)


def _chain(node: ast.AST) -> list[str] | None:
    """`a.b["c"]` as its names; None for anything else."""
    names: list[str] = []
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            names.append(node.attr)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            names.append(node.slice.value)
        else:
            return None
        node = node.value
    return [node.id, *reversed(names)]


def _depth(tree: ast.AST) -> int:
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def renamed(text: str, names: Mapping[str, str], nodes: Sequence[str]) -> str:
    """The condition with nodes named otherwise, as where one graph is put into another. Raises ValueError for what does not parse."""
    condition = Condition(text, set(nodes).__contains__)
    back: dict[str, str] = {}
    for reference, name in condition.references.items():
        holder = "request.parameters" if reference.field else f"{NODES}[{names.get(reference.node, reference.node)!r}]"
        if not reference.field and reference.node in ("request", "row"):
            holder = reference.node
        back[name] = f"{holder}[{reference.tensor!r}]"
    return ast.unparse(_Writer(back).visit(condition.tree))


class _Writer(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.parse(self._names.get(node.id, node.id), mode="eval").body
