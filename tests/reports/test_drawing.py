"""Marks as SVG and as PNG: the same places, colours by name, texts that cannot break out."""

import re
from xml.etree import ElementTree

from PIL import Image

from reports.drawing import (
    Box,
    Dot,
    Label,
    Line,
    Picture,
    Sheet,
    Words,
    style_of_hues,
    svg,
    write_png,
)
from reports.palette import HUES

SHEET = Sheet(
    100, 50,
    frame=(Line(((0, 40), (100, 40)), "grid"), Words(5, 48, "a <b>", hue="ink"),
           Label(10, 60, 20, "F&B", "purple"), Label(60, 64, 20, "narrow", "blue")),
    plot=(Box(10, 10, 50, 20, "purple", 'tip "<1>"'), Dot(70, 20, "red"),
          Picture(80, 10, 10, 10, (("#ff0000", ""),))),
    area=(10, 5, 85, 35),
    zoom="step",
    ends=(0.0, 1.5),
)  # fmt: skip


def test_a_sheet_is_well_formed_and_names_itself_and_its_axis():
    root = ElementTree.fromstring(svg(SHEET, title="A & B", alone=True))
    assert root.attrib["viewBox"] == "0 0 100 50"
    assert root.attrib["aria-label"] == "A & B"
    assert [root.attrib[f"data-{of}"] for of in ("zoom", "low", "high")] == ["step", "0", "1.5"]


def test_texts_and_tips_are_escaped():
    text = svg(SHEET, title="<t>")
    assert "a &lt;b&gt;" in text
    assert 'data-t="tip &quot;&lt;1&gt;&quot;"' in text
    assert "<t>" not in text


def test_a_label_shows_only_where_its_bar_has_room():
    shown = re.findall(r'<text class="in in-\w+"[^>]*>', svg(SHEET, title=""))
    assert ['visibility="hidden"' in element for element in shown] == [False, True]


def test_the_style_gives_each_hue_a_colour_for_light_and_for_dark():
    style = style_of_hues()
    for name, (light, dark) in HUES.items():
        assert style.count(f"--{name}:{light};") == 1
        assert style.count(f"--{name}:{dark};") == 1


def test_a_png_shows_each_mark_in_its_place_at_twice_the_size(tmp_path):
    write_png(SHEET, tmp_path / "sheet.png")
    at = _colours_of(tmp_path / "sheet.png", (200, 100))
    assert at(58, 28) == HUES["purple"][0]
    assert at(70, 20) == HUES["red"][0]
    assert at(82, 15) == "#ff0000"
    assert at(87, 15) == "#ffffff"
    assert at(5, 5) == "#ffffff"


def test_a_png_cuts_a_plot_at_its_axes_and_goes_on_from_band_to_band(tmp_path):
    # Bands are 400 high; the box ends at the area's 820, not at its own 900.
    bar = Box(10, 10, 5, 890, "purple")
    sheet = Sheet(20, 1000, (Box(2, 10, 5, 890, "red"),), (bar,), (0, 0, 20, 820))
    write_png(sheet, tmp_path / "tall.png")
    at = _colours_of(tmp_path / "tall.png", (40, 2000))
    heights = (9, 10, 399, 400, 799, 800, 819, 820, 899, 900)
    assert [at(12, y) == HUES["purple"][0] for y in heights] == [False, *[True] * 6, *[False] * 3]
    assert [at(4, y) == HUES["red"][0] for y in heights] == [False, *[True] * 8, False]
    assert at(12, 820) == at(4, 900) == "#ffffff"


def test_a_box_thinner_than_a_pixel_is_seen(tmp_path):
    # The least that is drawn is a third of a picture's pixel.
    write_png(Sheet(10, 10, (Box(4, 2, 0.05, 6, "red"),), (), (0, 0, 0, 0)), tmp_path / "a.png")
    part = [round((2 * 255 + int(HUES["red"][0][at : at + 2], 16)) / 3) for at in (1, 3, 5)]
    at = _colours_of(tmp_path / "a.png", (20, 20))
    assert at(4, 5) == "#" + "".join(f"{one:02x}" for one in part)


def test_a_dashed_line_is_drawn_for_five_pixels_and_left_out_for_four(tmp_path):
    # Round the corner at (10, 5): from 5 to 10 nothing is drawn but the last pixel, then 4 upwards.
    line = Line(((0, 5), (10, 5), (10, 25)), "red", 1.0, dashed=True)
    write_png(Sheet(20, 30, (line,), (), (0, 0, 0, 0)), tmp_path / "dashes.png")
    at = _colours_of(tmp_path / "dashes.png", (40, 60))
    assert [at(x, 5) == HUES["red"][0] for x in range(1, 10)] == [*[True] * 4, *[False] * 4, True]
    assert [at(10, y) == HUES["red"][0] for y in range(6, 25)] == [
        *[True] * 3, *[False] * 4, *[True] * 5, *[False] * 4, *[True] * 3
    ]  # fmt: skip


def test_upright_words_end_where_others_would_begin(tmp_path):
    # Upright ones lie left of their place, the others above it; both begin there.
    words = [Words(40, 60, "III", hue="ink", upright=True), Words(80, 60, "III", hue="ink")]
    write_png(Sheet(120, 80, tuple(words), (), (0, 0, 0, 0)), tmp_path / "words.png")
    with Image.open(tmp_path / "words.png") as picture:
        dark = picture.convert("L").point(lambda light: 255 * (light < 128))
        first = dark.crop((0, 0, 120, 160)).getbbox()
        second = dark.crop((120, 0, 240, 160)).getbbox()
    assert first[2] <= 80
    assert first[3] <= 120
    assert second[0] >= 40
    assert second[3] <= 121
    assert (first[3] - first[1], first[2] - first[0]) == (
        second[2] - second[0],
        second[3] - second[1],
    )


def _colours_of(path, size):
    """The colour of a place of a sheet in its picture, which is of that size."""
    with Image.open(path) as picture:
        pixels = picture.convert("RGB")
    assert pixels.size == size
    return lambda x, y: "#{:02x}{:02x}{:02x}".format(*pixels.getpixel((2 * x, 2 * y)))


def test_files_of_one_sheet_are_the_same(tmp_path):
    for name in ("a.png", "b.png"):
        write_png(SHEET, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
