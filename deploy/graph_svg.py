"""An SVG picture of a drawing: columns in the direction of the data, after Sugiyama, Tagawa and Toda (1981); no script, no style sheet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from xml.sax.saxutils import escape

import msgspec

from deploy.graph_drawing import Arrow, Box, Drawing

CHARACTER_WIDTH = 7.23
"""Of the monospaced 12 px that every label is set in."""
LINE_HEIGHT = 16.0
PADDING = 10.0
ROW_GAP, COLUMN_GAP = 20.0, 56.0
WAYPOINT_HEIGHT = 8.0
LABEL_CHARACTERS_MAX = 48
SWEEPS = 4
FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
INK, LINE = "#1a202c", "#4a5568"
STYLES = {
    "stage": ("#e8f1fb", "#2b6cb0", 4),
    "switch": ("#fdf3e1", "#b7791f", 14),
    "splitter": ("#fdf3e1", "#b7791f", 14),
    "canary": ("#fdf3e1", "#b7791f", 14),
    "shadow": ("#f0eef6", "#6b5b95", 14),
    "ensemble": ("#e9f7ef", "#2f855a", 14),
    "for_each": ("#f7f7f7", "#718096", 4),
    "end": ("#ffffff", LINE, 13),
}
"""Fill, line and corner radius by kind."""


class _Place(msgspec.Struct, frozen=True):
    """Where something stands; a waypoint of a long arrow has no box."""

    left: float
    top: float
    width: float
    height: float
    column: tuple[float, float]
    """Left and right side of its column: arrows bend between columns only."""

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


class _Route(msgspec.Struct, frozen=True):
    """An arrow with everything that it passes, one for each column, ends included."""

    arrow: Arrow
    stops: tuple[str, ...]


class _Laid(msgspec.Struct, frozen=True):
    """A drawing with its places."""

    width: float
    height: float
    places: dict[str, _Place]
    routes: list[_Route]
    inner: dict[str, _Laid]


def svg(drawing: Drawing, title: str) -> str:
    """A picture that needs nothing beside it."""
    laid = _lay_out(drawing)
    width, height = round(laid.width + 2 * PADDING), round(laid.height + 2 * PADDING)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    tip = '<path d="M0 0 8 4 0 8z" fill="#4a5568"/>'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">{tip}</marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_paint(drawing, laid, PADDING, PADDING),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _lay_out(drawing: Drawing) -> _Laid:
    inner = {name: _lay_out(box.inner) for name, box in drawing.boxes.items() if box.inner is not None}
    sizes = {name: _size(box, inner.get(name)) for name, box in drawing.boxes.items()}
    columns, routes = _columns(drawing)
    places: dict[str, _Place] = {}
    left = 0.0
    heights = [sum(sizes.get(name, (0.0, WAYPOINT_HEIGHT))[1] + ROW_GAP for name in column) - ROW_GAP for column in columns]
    tallest = max(heights, default=0.0)
    for number, column in enumerate(columns):
        wide = max(sizes.get(name, (0.0, 0.0))[0] for name in column)
        top = (tallest - heights[number]) / 2
        for name in column:
            width, height = sizes.get(name, (wide, WAYPOINT_HEIGHT))
            places[name] = _Place(left + (wide - width) / 2, top, width, height, (left, left + wide))
            top += height + ROW_GAP
        # A label stands in the last gap that its arrow crosses.
        labels = [len(_short(route.arrow.label)) for route in routes if route.stops[-2] in column]
        left += wide + COLUMN_GAP + max(labels, default=0) * CHARACTER_WIDTH
    right = max((place.left + place.width for place in places.values()), default=0.0)
    return _Laid(right, tallest, places, routes, inner)


def _size(box: Box, inner: _Laid | None) -> tuple[float, float]:
    width = max(len(line) for line in box.lines) * CHARACTER_WIDTH + 2 * PADDING
    height = len(box.lines) * LINE_HEIGHT + PADDING
    if inner is None:
        return width, height
    return max(width, inner.width + 3 * PADDING), height + inner.height + 2 * PADDING


def _columns(drawing: Drawing) -> tuple[list[list[str]], list[_Route]]:
    """Every box in the column of the longest way to it; arrows over several columns pass waypoints, so that they go round the boxes between."""
    depth = dict.fromkeys(drawing.boxes, 0)
    for _ in drawing.boxes:
        for arrow in drawing.arrows:
            # A graph that goes in circles is drawn too: nothing is deeper than there are boxes.
            depth[arrow.target] = min(max(depth[arrow.target], depth[arrow.source] + 1), len(depth))
    used = {level: number for number, level in enumerate(sorted(set(depth.values())))}
    columns: list[list[str]] = [[] for _ in used]
    for name in drawing.boxes:
        columns[used[depth[name]]].append(name)
    routes: list[_Route] = []
    for number, arrow in enumerate(drawing.arrows):
        first, last = used[depth[arrow.source]], used[depth[arrow.target]]
        waypoints = {column: f"{number}>{column}" for column in range(first + 1, last)}
        for column, name in waypoints.items():
            columns[column].append(name)
        routes.append(_Route(arrow, (arrow.source, *waypoints.values(), arrow.target)))
    _uncross(columns, routes)
    return columns, routes


def _uncross(columns: list[list[str]], routes: list[_Route]) -> None:
    """Each column by the middle of its neighbours before, then by those behind, some times over."""
    before: dict[str, list[str]] = {}
    behind: dict[str, list[str]] = {}
    for route in routes:
        for source, target in pairwise(route.stops):
            before.setdefault(target, []).append(source)
            behind.setdefault(source, []).append(target)
    for sweep in range(SWEEPS):
        neighbours = behind if sweep % 2 else before
        row: dict[str, float] = {name: (n + 0.5) / len(column) for column in columns for n, name in enumerate(column)}
        for column in reversed(columns) if sweep % 2 else columns:
            middle = {name: [row[other] for other in neighbours.get(name, [])] or [row[name]] for name in column}
            column.sort(key=lambda name, middle=middle: sum(middle[name]) / len(middle[name]))
            row |= {name: (number + 0.5) / len(column) for number, name in enumerate(column)}


def _paint(drawing: Drawing, laid: _Laid, x: float, y: float) -> Iterator[str]:
    for name, box in drawing.boxes.items():
        place = laid.places[name]
        yield from _paint_box(box, place, x, y)
        if box.inner is not None:
            inner = laid.inner[name]
            left, top = place.left + (place.width - inner.width) / 2, place.top + len(box.lines) * LINE_HEIGHT + 1.5 * PADDING
            yield from _paint(box.inner, inner, x + left, y + top)
    taken: list[tuple[float, float]] = []
    labels: list[str] = []
    for route in laid.routes:
        yield _line(route, laid, x, y)
        labels.extend(_label(route, laid, (x, y), taken))
    yield from labels


def _paint_box(box: Box, place: _Place, x: float, y: float) -> Iterator[str]:
    fill, line, radius = STYLES[box.kind]
    left, top, middle = x + place.left, y + place.top, x + place.left + place.width / 2
    yield f'<rect x="{left:.1f}" y="{top:.1f}" width="{place.width:.1f}" height="{place.height:.1f}" rx="{radius}" fill="{fill}" stroke="{line}"/>'
    for number, text in enumerate(box.lines):
        weight = ' font-weight="bold"' if number == 0 and box.kind != "end" else ""
        baseline = top + PADDING / 2 + (number + 0.75) * LINE_HEIGHT
        yield f'<text x="{middle:.1f}" y="{baseline:.1f}" text-anchor="middle" fill="{INK}"{weight}>{escape(text)}</text>'


def _line(route: _Route, laid: _Laid, x: float, y: float) -> str:
    """From the right side of the source to the left side of the target, level where it leaves, passes and arrives."""
    stops = [laid.places[name] for name in route.stops]
    path = [f"M{x + stops[0].left + stops[0].width:.1f} {y + stops[0].middle:.1f}"]
    for here, there in pairwise(stops):
        start, end = x + here.column[1], x + there.column[0]
        bend = (start + end) / 2
        path.append(f"H{start:.1f} C{bend:.1f} {y + here.middle:.1f} {bend:.1f} {y + there.middle:.1f} {end:.1f} {y + there.middle:.1f}")
    path.append(f"H{x + stops[-1].left:.1f}")
    dashes = ' stroke-dasharray="5 4"' if route.arrow.dotted else ""
    return f'<path d="{" ".join(path)}" fill="none" stroke="{LINE}"{dashes} marker-end="url(#tip)"/>'


def _label(route: _Route, laid: _Laid, at: tuple[float, float], taken: list[tuple[float, float]]) -> Iterator[str]:
    """In the middle of the last gap, moved down where another label stands."""
    text = _short(route.arrow.label)
    if not text:
        return
    here, there = laid.places[route.stops[-2]], laid.places[route.stops[-1]]
    middle = at[0] + (here.column[1] + there.column[0]) / 2
    baseline = at[1] + (here.middle + there.middle) / 2 + 4
    while any(abs(middle - x) < len(text) * CHARACTER_WIDTH and abs(baseline - y) < LINE_HEIGHT for x, y in taken):
        baseline += LINE_HEIGHT
    taken.append((middle, baseline))
    width = len(text) * CHARACTER_WIDTH + 4
    yield f'<rect x="{middle - width / 2:.1f}" y="{baseline - 12:.1f}" width="{width:.1f}" height="16" fill="#ffffff" fill-opacity="0.85"/>'
    yield f'<text x="{middle:.1f}" y="{baseline:.1f}" text-anchor="middle" fill="{LINE}">{escape(text)}</text>'


def _short(label: str) -> str:
    return label if len(label) <= LABEL_CHARACTERS_MAX else label[: LABEL_CHARACTERS_MAX - 1] + "…"
