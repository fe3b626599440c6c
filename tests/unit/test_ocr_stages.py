"""The OCR example's Python tasks on small pages drawn here: what they find, what they refuse, and in which order lines are read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from headrace_ocr.layout import LINE_HEIGHT, LINE_STEPS, LINE_WIDTH, LINES_MAX, NEUTRAL, PAGE_SIDE, cut_line, read_page
from headrace_ocr.stages import cut, decode, find_boxes, text
from PIL import Image


def file_of(pixels, form="PNG", mode=None):
    stored = io.BytesIO()
    Image.fromarray(pixels, mode).save(stored, form)
    return np.array([stored.getvalue()], object)


def map_of(*rectangles, side=PAGE_SIDE, probability=255):
    """A map with text in (left, top, right, bottom) of the map."""
    found = np.zeros((1, side, side), np.uint8)
    for left, top, right, bottom in rectangles:
        found[0, top:bottom, left:right] = probability
    return found


def test_a_page_becomes_grey_and_stands_in_the_corner_of_the_square():
    pixels = np.full((60, 100, 3), 200, np.uint8)
    pixels[:, :50] = (255, 0, 0)
    page = decode({"image": file_of(pixels)}, {})["page"]
    assert page.shape == (1, PAGE_SIDE, PAGE_SIDE)
    assert page.dtype == np.uint8
    assert set(np.unique(page[0, :60, :50])) == {76}
    assert set(np.unique(page[0, :60, 50:100])) == {200}


def test_the_rest_of_the_square_has_the_pages_own_grey():
    pixels = np.full((60, 100), 230, np.uint8)
    pixels[20:30, 20:60] = 0
    page = decode({"image": file_of(pixels)}, {})["page"][0]
    assert set(np.unique(page[60:])) | set(np.unique(page[:, 100:])) == {230}


@pytest.mark.parametrize(("width", "height"), [(1600, 400), (400, 1600), (3000, 10), (801, 801)])
def test_large_pages_are_shrunk_to_fit(width, height):
    pixels = np.full((height, width), 255, np.uint8)
    pixels[:, width // 2 :] = 0
    page = decode({"image": file_of(pixels, "JPEG")}, {})["page"][0]
    scale = PAGE_SIDE / max(width, height)
    dark = np.flatnonzero(page[0] < 128)
    assert dark[0] == pytest.approx(width / 2 * scale, abs=2)


@pytest.mark.parametrize("image", [[b"no image"], [b""], [b"\x89PNG\r\n\x1a\n"]])
def test_what_is_no_image_is_refused_by_name(image):
    with pytest.raises(ValueError, match="neither PNG nor JPEG"):
        read_page(np.array(image, object))


def test_other_formats_are_not_opened():
    with pytest.raises(ValueError, match="neither PNG nor JPEG"):
        read_page(file_of(np.zeros((4, 4), np.uint8), "TIFF"))


def test_a_request_is_one_page():
    with pytest.raises(ValueError, match="2 elements"):
        read_page(np.array([b"", b""], object))


def test_a_page_that_is_large_only_once_decompressed_is_refused_before():
    image = file_of(np.zeros((7_000, 7_000), np.uint8))
    assert len(image[0]) < 1 << 20
    with pytest.raises(ValueError, match="7000 x 7000 pixels"):
        read_page(image)


@pytest.mark.parametrize("side", [PAGE_SIDE, 480, 320])
def test_boxes_come_back_in_the_pages_own_pixels(side):
    """A page of 1600 x 800 is shrunk to half; the map's pixels are larger still where the detector is smaller."""
    scale = side / PAGE_SIDE / 2
    rectangle = [round(value * scale) for value in (200, 100, 900, 160)]
    boxes = find_boxes(map_of(rectangle, side=side)[0], 1600, 800, {})
    (corners,) = boxes
    width, height = corners[1, 0] - corners[0, 0], corners[3, 1] - corners[0, 1]
    assert corners.mean(axis=0) == pytest.approx([550, 130], abs=2 / scale)
    # Grown by area x 1.6 / perimeter on each side: about 0.74 of the height in all.
    assert width == pytest.approx(700 + 88, abs=6 / scale)
    assert height == pytest.approx(60 + 88, abs=6 / scale)


def test_faint_and_tiny_regions_are_no_lines():
    found = map_of((10, 10, 200, 30), probability=100)[0]
    found[100:102, 100:200] = 255
    assert find_boxes(found, 800, 800, {}).shape == (0, 4, 2)
    assert len(find_boxes(found, 800, 800, {"box_threshold": 0.35})) == 1


def test_boxes_stay_on_the_page():
    corners = find_boxes(map_of((0, 0, 800, 40))[0], 800, 600, {})[0]
    assert corners.min() >= 0
    assert corners[:, 0].max() <= 799


def test_lines_are_read_from_the_top_and_within_a_line_from_the_left():
    """The right part of the first line stands a little higher than its left part."""
    found = map_of((400, 52, 600, 72), (20, 56, 300, 76), (20, 200, 300, 220), (20, 120, 300, 140))
    lefts = [(round(box[:, 0].min()), round(box[:, 1].mean())) for box in find_boxes(found[0], 800, 800, {})]
    assert [left < 100 for left, _ in lefts] == [True, False, True, True]
    assert [top for _, top in lefts][2:] == sorted(top for _, top in lefts[2:])


def test_lines_are_cut_from_the_page_as_it_was_sent():
    page = np.full((400, 1600), 255, np.uint8)
    page[100:160, 200:900] = 0
    result = cut({"image": file_of(page), "map": map_of((100, 50, 450, 80))}, {})
    assert result["lines"].shape == (1, LINE_HEIGHT, LINE_WIDTH)
    assert result["boxes"].shape == (1, 4, 2)
    middle = result["lines"][0, LINE_HEIGHT // 2]
    assert middle[:8].min() > 200
    assert middle[40:200].max() < 30


def test_a_page_without_text_has_no_lines():
    result = cut({"image": file_of(np.full((50, 50), 255, np.uint8)), "map": map_of()}, {})
    assert result["lines"].shape == (0, LINE_HEIGHT, LINE_WIDTH)
    assert result["boxes"].shape == (0, 4, 2)


def test_more_lines_than_the_limit_are_refused():
    rectangles = [(10, top, 60, top + 6) for top in range(5, 5 + 18 * (LINES_MAX + 1), 18)]
    with pytest.raises(ValueError, match=f"{LINES_MAX + 1} lines"):
        cut({"image": file_of(np.zeros((800, 800), np.uint8)), "map": map_of(*rectangles)}, {})


def test_a_short_line_is_padded_and_a_long_one_squeezed():
    page = np.full((100, 2000), 200, np.uint8)
    short = cut_line(page, np.array([[0, 0], [96, 0], [96, 48], [0, 48]], np.float32))
    assert set(np.unique(short[:, 96:])) == {NEUTRAL}
    assert set(np.unique(short[:, :96])) == {200}
    long = cut_line(page, np.array([[0, 0], [1990, 0], [1990, 24], [0, 24]], np.float32))
    assert set(np.unique(long)) == {200}


def test_an_upright_box_is_laid_down():
    """Text that runs downwards begins at the upper right corner of its box."""
    page = np.full((300, 100), 255, np.uint8)
    page[:100] = 0
    line = cut_line(page, np.array([[20, 0], [60, 0], [60, 200], [20, 200]], np.float32))
    assert line[24, 20] < 30
    assert line[24, 200] > 220


def codes_of(*lines):
    codes = np.zeros((len(lines), LINE_STEPS), np.int32)
    for row, line in enumerate(lines):
        codes[row, 1 : 2 * len(line) : 2] = [ord(character) for character in line]
    return codes


def read(lines, upside_down):
    count = len(lines)
    inputs = {
        "codes": codes_of(*lines),
        "confidence": np.linspace(0.5, 1, count, dtype=np.float32),
        "upside_down": np.array(upside_down, np.float32),
        "boxes": np.arange(count * 8, dtype=np.float32).reshape(count, 4, 2),
    }
    return inputs, text(inputs, {})


def test_code_points_become_text():
    _, result = read(["Ünïcode", "", "字 x"], [0, 0, 0])
    assert [line.decode() for line in result["text"]] == ["Ünïcode", "", "字 x"]
    assert result["text"].dtype == object


def test_a_page_upside_down_is_read_from_its_other_end():
    inputs, result = read(["last", "middle", "first"], [1, 0, 1])
    assert list(result["text"]) == [b"first", b"middle", b"last"]
    assert np.array_equal(result["boxes"], inputs["boxes"][::-1])
    assert np.array_equal(result["confidence"], inputs["confidence"][::-1])


def test_one_line_turned_does_not_turn_the_page():
    assert list(read(["a", "b", "c"], [1, 0, 0])[1]["text"]) == [b"a", b"b", b"c"]


def test_no_lines_are_no_text():
    assert read([], [])[1]["text"].shape == (0,)
