"""Pages with exact truth: text set in real fonts, blurred, made noisy, compressed, some upside down. The same seed gives the same pages."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from rapidfuzz.distance import Levenshtein

FONTS = (
    ("font_source_sans_pro", "SourceSansPro-Regular.ttf"),
    ("font_source_sans_pro", "SourceSansPro-Bold.ttf"),
    ("font_source_sans_pro", "SourceSansPro-It.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Regular.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-Semibold.ttf"),
    ("font_source_serif_pro", "SourceSerifPro-It.ttf"),
    ("font_caladea", "Caladea-Regular.ttf"),
    ("font_caladea", "Caladea-Bold.ttf"),
)
SIZES = ((800, 600), (900, 700), (640, 480), (600, 800))
WORD = re.compile(r"[A-Za-z0-9(),.;:'\"-]{1,16}")
UPSIDE_DOWN = 0.2
"""Part of the pages."""
MARGIN = 15


class Page(NamedTuple):
    """A page as a client sends it, and what stands on it."""

    image: bytes
    """JPEG."""
    lines: tuple[str, ...]
    upside_down: bool


def render_pages(count: int, seed: int = 11) -> list[Page]:
    """Pages of about nine lines."""
    random = np.random.default_rng(seed)
    words = [word for word in files(__package__).joinpath("text.txt").read_text().split() if WORD.fullmatch(word)]
    fonts = [files(package).joinpath("files", name).read_bytes() for package, name in FONTS]
    return [_render(random, words, fonts) for _ in range(count)]


def character_error(read: Sequence[str], truth: Sequence[str]) -> tuple[int, int]:
    """(edits, characters of the truth): insertions, deletions and substitutions between the pages' whole texts."""
    stated = " ".join(truth)
    return Levenshtein.distance(" ".join(read), stated), len(stated)


def _render(random: np.random.Generator, words: list[str], fonts: list[bytes]) -> Page:
    width, height = SIZES[int(random.integers(len(SIZES)))]
    background = tuple(int(value) for value in random.integers(200, 256, 3))
    image = Image.new("RGB", (width, height), background)
    canvas = ImageDraw.Draw(image)
    lines: list[str] = []
    top = 20
    while top < height - 50:
        size = int(random.integers(16, 31))
        font = ImageFont.truetype(io.BytesIO(fonts[int(random.integers(len(fonts)))]), size)
        line = _fitting(_line(random, words), font, width - 4 * MARGIN)
        if line:
            left = int(random.integers(MARGIN, max(MARGIN + 1, int(width - 2 * MARGIN - font.getlength(line)))))
            ink = tuple(int(value) for value in random.integers(0, 91, 3))
            canvas.text((left, top), line, font=font, fill=ink)
            lines.append(line)
        top += int(size * 1.5) + int(random.integers(4, 41))
    upside_down = bool(random.random() < UPSIDE_DOWN)
    if upside_down:
        image = image.transpose(Image.Transpose.ROTATE_180)
    return Page(_degraded(random, image), tuple(lines), upside_down)


def _line(random: np.random.Generator, words: list[str]) -> str:
    count = int(random.integers(2, 7))
    start = int(random.integers(len(words) - count))
    line = " ".join(words[start : start + count])
    return f"{line} {int(random.integers(100_000))}" if random.random() < 0.3 else line


def _fitting(line: str, font: ImageFont.FreeTypeFont, length: int) -> str:
    while font.getlength(line) > length:
        line = line.rpartition(" ")[0]
    return line


def _degraded(random: np.random.Generator, image: Image.Image) -> bytes:
    if random.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.2, 0.8))))
    pixels = np.asarray(image).astype(np.float32)
    pixels += random.normal(0, random.uniform(1, 13), pixels.shape)
    stored = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stored, "JPEG", quality=int(random.integers(30, 86)))
    return stored.getvalue()
