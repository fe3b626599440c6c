"""Changes values of a YAML document before it is read, by path: what `--sweep loads.shop.rate_rps=100,200` asks for.

The changed document goes through the same checks as any other; what is wrong with a value is told at the line that it replaced.
"""

# ruamel.yaml ships no types for its nodes.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML, MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.error import YAMLError

from deploy.suggestions import did_you_mean
from deploy.yaml_documents import TAG
from schemas.errors import CatalogError

NAMED_BY = ("name", "type", "kind")
"""A list's items are addressed by their number, from 0, or by one of these."""


def changed(root: Any, path: str, text: str) -> None:
    """Put a value (as YAML) where the path leads; keys that are missing are made, and a unit may be left out (`rate` for `rate_rps`).

    Raises CatalogError where the path leads nowhere or the value is no YAML.
    """
    node, steps = root, path.split(".")
    if not all(steps):
        raise CatalogError(f"{path!r} is not a path: names joined by dots, like loads.shop.rate_rps")
    while len(steps) > 1:
        position, used = _find(node, steps, path)
        if position is None:
            node = _added(node, steps.pop(0), MappingNode(TAG + "map", [], node.start_mark, node.end_mark))
            continue
        steps = steps[used:]
        if not steps:
            _replace(node, position, _value(text, path, _child(node, position)))
            return
        node = _child(node, position)
    position, _ = _find(node, steps, path)
    if position is None:
        _added(node, steps[0], _value(text, path, node))
    else:
        _replace(node, position, _value(text, path, _child(node, position)))


def _find(node: Any, steps: list[str], path: str) -> tuple[int | None, int]:
    """(position of what the first steps name, how many steps they are): names with dots are tried first."""
    if isinstance(node, SequenceNode):
        return _item(node, steps[0], path), 1
    if not isinstance(node, MappingNode):
        raise CatalogError(f"{path!r} leads nowhere: nothing can be named inside of {node.value!r}")
    keys = [str(key.value) for key, _ in node.value]
    for used in range(len(steps), 0, -1):
        name = ".".join(steps[:used])
        if name in keys:
            return keys.index(name), used
    with_unit = [key for key in keys if key.rpartition("_")[0] == steps[0]]
    return (keys.index(with_unit[0]), 1) if len(with_unit) == 1 else (None, 1)


def _item(node: Any, step: str, path: str) -> int:
    if step.isdecimal() and int(step) < len(node.value):
        return int(step)
    names: dict[str, int] = {}
    for number, item in enumerate(node.value):
        values = {str(key.value): value for key, value in item.value} if isinstance(item, MappingNode) else {}
        names |= {str(values[key].value): number for key in NAMED_BY if key in values and isinstance(values[key], ScalarNode)}
    if step not in names:
        raise CatalogError(f"{path!r} leads nowhere: the list has {len(node.value)} items, none called {step!r}{did_you_mean(step, names)}")
    return names[step]


def _child(node: Any, position: int) -> Any:
    return node.value[position][1] if isinstance(node, MappingNode) else node.value[position]


def _replace(node: Any, position: int, value: Any) -> None:
    node.value[position] = (node.value[position][0], value) if isinstance(node, MappingNode) else value


def _added(node: Any, key: str, value: Any) -> Any:
    node.value.append((ScalarNode(TAG + "str", key, node.start_mark, node.end_mark), value))
    return value


def _value(text: str, path: str, old: Any) -> Any:
    """The value as a node that says it stands where the old one stood."""
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except YAMLError:
        node = None
    if node is None:
        raise CatalogError(f"{path}={text}: the value is not YAML: a number, a word, or a list in brackets")
    _place(node, old)
    return node


def _place(node: Any, old: Any) -> None:
    node.start_mark, node.end_mark = old.start_mark, old.end_mark
    for child in node.value if isinstance(node, SequenceNode | MappingNode) else ():
        for part in child if isinstance(child, tuple) else (child,):
            _place(part, old)
