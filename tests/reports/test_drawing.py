"""Marks as SVG and as PNG: the same places, colours by name, texts that cannot break out."""

import re
from xml.etree import ElementTree

import numpy as np
from matplotlib.image import imread

from reports.drawing import (
    Box,
    Dot,
    Label,
    Line,
    Picture,
    Sheet,
    Words,
    Zoom,
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
    zoom=Zoom(0.0, 1.5, "step"),
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
    picture = imread(tmp_path / "sheet.png")
    assert picture.shape == (100, 200, 4)
    colour = np.round(255 * picture[..., :3]).astype(int)

    def at(x, y):
        return "#" + "".join(f"{part:02x}" for part in colour[2 * y, 2 * x])

    assert at(58, 28) == HUES["purple"][0]
    assert at(70, 20) == HUES["red"][0]
    assert at(82, 15) == "#ff0000"
    assert at(5, 5) == "#ffffff"


def test_files_of_one_sheet_are_the_same(tmp_path):
    for name in ("a.png", "b.png"):
        write_png(SHEET, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
