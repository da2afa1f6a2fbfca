"""What a chart is drawn with: marks on a sheet, written as SVG or PNG.

Positions are pixels from the upper left corner of a sheet. Marks name hues of the palette; whoever
writes them fills in colours. A page takes them from its style sheet, so that they follow its theme;
a file of its own carries that sheet along.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.metadata import distribution
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from reports.palette import COLOURS, HUES, words_on

if TYPE_CHECKING:
    from PIL import Image, ImageFont

Hue: TypeAlias = str
"""A hue of the palette, "grid", "muted", or "none" of what is pointed at and not seen."""
Anchor: TypeAlias = Literal["start", "middle", "end"]

FONT_SIZE = 12.5
WIDE = 0.62
"""Width of a character over its height, of the fonts of pages, mean."""


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    hue: Hue
    tip: str = ""
    """What it stands for, shown where it is pointed at."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    hue: Hue
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    hue: Hue
    radius: float = 3.0
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text; `y` is its base line."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    hue: Hue = "muted"
    size: float = FONT_SIZE
    upright: bool = False
    """Whether it runs upwards."""


@dataclass(frozen=True, slots=True)
class Label:
    """A word inside a bar, shown where it has room there."""

    left: float
    right: float
    y: float
    text: str
    on: Hue
    """Of the bar."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Cells of a grid, each with a colour."""

    x: float
    y: float
    width: float
    height: float
    colours: tuple[tuple[str, ...], ...]
    """[row][column], hexadecimal; empty for no cell."""


Mark: TypeAlias = Box | Line | Dot | Words | Label | Picture


@dataclass(frozen=True, slots=True)
class Sheet:
    """A drawn chart."""

    width: float
    height: float
    frame: tuple[Mark, ...]
    """Axes, words, legend."""
    plot: tuple[Mark, ...]
    """What lies inside the axes and is cut at them."""
    area: tuple[float, float, float, float]
    """Left, upper, width and height of what the axes enclose."""
    zoom: str = ""
    """Sheets of one name zoom together; empty for one that does not."""
    ends: tuple[float, float] = (0.0, 0.0)
    """Of the horizontal axis of one that does, in its unit."""


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """About how wide a text is."""
    return WIDE * size * len(text)


# -- SVG -------------------------------------------------------------------------------------------


def style_of_hues() -> str:
    """The style sheet that fills in the colours of marks, for light and for dark."""
    light, dark = (
        "".join(f"--{name}:{colours[theme]};" for name, colours in COLOURS.items())
        + "".join(f"--on-{name}:{words_on(name, theme)};" for name in HUES)
        for theme in (0, 1)
    )
    classes = "".join(
        f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}" for name in COLOURS
    )
    words = "".join(f".in-{name}{{fill:var(--on-{name})}}" for name in HUES)
    return (
        f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}{words}"
        ".f-none{fill:none;pointer-events:all}"
        ".sheet text{font:12.5px system-ui,-apple-system,'Segoe UI',sans-serif}"
        ".sheet .line{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round}"
        ".sheet .dot{fill:none;stroke-linecap:round;vector-effect:non-scaling-stroke}"
        ".sheet .in{font-size:11px;font-weight:600;pointer-events:none}"
    )


def svg(sheet: Sheet, *, title: str, alone: bool = False) -> str:
    """A sheet as an SVG element, or as a file of its own with its colours."""
    left, upper, width, height = sheet.area
    zoom = ""
    if sheet.zoom:
        low, high = sheet.ends
        zoom = f' data-zoom="{escape(sheet.zoom)}" data-low="{low:.9g}" data-high="{high:.9g}"'
    name = f' xmlns="http://www.w3.org/2000/svg" width="{sheet.width:g}" height="{sheet.height:g}"'
    size = f"{sheet.width:g} {sheet.height:g}"
    inside = f'x="{left:g}" y="{upper:g}" width="{width:g}" height="{height:g}"'
    box = f"{left:g} {upper:g} {width:g} {height:g}"
    parts = [
        f'<svg class="sheet"{name if alone else ""} viewBox="0 0 {size}" role="img" '
        f'aria-label="{escape(title)}"{zoom}>'
    ]
    if alone:
        parts.append(f"<style>{style_of_hues()}</style>")
        parts.append('<rect width="100%" height="100%" class="f-paper"/>')
    parts += _elements([m for m in sheet.frame if isinstance(m, Line)])
    parts.append(f'<svg class="plot" {inside} viewBox="{box}" preserveAspectRatio="none">')
    parts += _elements(sheet.plot)
    parts.append("</svg>")
    parts += _elements([m for m in sheet.frame if not isinstance(m, Line)])
    parts.append("</svg>")
    return "".join(parts)


def _elements(marks: Sequence[Mark]) -> Iterator[str]:
    """Marks as elements, neighbours of one kind and hue in one group."""
    for (kind, hue), members in groupby(marks, lambda m: (type(m), getattr(m, "hue", ""))):
        if kind in (Box, Line, Dot):
            side = "f" if kind is Box else "s"
            yield f'<g class="{side}-{hue}">'
            yield from map(_element, members)
            yield "</g>"
        else:
            yield from map(_element, members)


def _element(mark: Mark) -> str:
    match mark:
        case Box(x, y, width, height, _, tip):
            return f'<path{_tip(tip)} d="M{_n(x)} {_n(y)}h{_n(width)}v{_n(height)}h{_n(-width)}z"/>'
        case Line(points, _, width, dashed):
            dash = ' stroke-dasharray="5 4"' if dashed else ""
            path = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
            return f'<path class="line" stroke-width="{width:g}"{dash} d="M{path}"/>'
        case Dot(x, y, _, radius, tip):
            # A line of no length with round ends stays round however its axis is zoomed.
            where = f"M{_n(x)} {_n(y)}h0"
            return f'<path class="dot"{_tip(tip)} stroke-width="{2 * radius:g}" d="{where}"/>'
        case Words(x, y, text, anchor, hue, size, upright):
            more = "" if anchor == "start" else f' text-anchor="{anchor}"'
            more += "" if size == FONT_SIZE else f' style="font-size:{size:g}px"'
            more += f' transform="rotate(-90 {_n(x)} {_n(y)})"' if upright else ""
            return f'<text class="f-{hue}" x="{_n(x)}" y="{_n(y)}"{more}>{escape(text)}</text>'
        case Label(left, right, y, text, on):
            hidden = "" if text_width(text, 11) + 4 < right - left else ' visibility="hidden"'
            at = f'data-a="{_n(left)}" data-b="{_n(right)}" x="{_n((left + right) / 2)}"'
            return (
                f'<text class="in in-{on}" {at} y="{_n(y)}" text-anchor="middle"{hidden}>'
                f"{escape(text)}</text>"
            )
        case Picture(x, y, width, height, colours):
            data = base64.b64encode(_picture(colours)).decode()
            return (
                f'<image x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" '
                'preserveAspectRatio="none" style="image-rendering:pixelated" '
                f'href="data:image/png;base64,{data}"/>'
            )


def _tip(text: str) -> str:
    return f' data-t="{escape(text)}"' if text else ""


def _n(value: float) -> str:
    """Thousandths of a pixel are seen where a chart is zoomed a thousandfold."""
    return f"{value:.3f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def _picture(colours: Sequence[Sequence[str]]) -> bytes:
    stream = io.BytesIO()
    _cells(colours).save(stream, format="png")
    return stream.getvalue()


def _cells(colours: Sequence[Sequence[str]]) -> Image.Image:
    """One pixel per cell, transparent where there is none."""
    from PIL import Image

    pixels = b"".join(
        bytes.fromhex(f"{colour[1:]}ff" if colour else "00000000")
        for row in colours
        for colour in row
    )
    return Image.frombytes("RGBA", (len(colours[0]) if colours else 0, len(colours)), pixels)


# -- PNG -------------------------------------------------------------------------------------------

_PIXELS = 2
"""Pixels of a PNG per pixel of its sheet, each way."""
_FINE = 6
"""Points drawn per pixel of a sheet, each way; their means smooth what lies askew."""
_BAND = 400
"""Pixels of a sheet drawn at a time, from above to below, which bounds the memory of tall ones."""
_DASH, _ROOM = 5.0, 4.0
_ANCHOR: Mapping[Anchor, str] = {"start": "ls", "middle": "ms", "end": "rs"}
_LABEL = 10.6
"""Height of words inside bars."""
_FONT = "matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"
"""Of matplotlib's, which need not be imported for it: that takes longer than most charts."""


def write_png(sheet: Sheet, path: Path) -> None:
    """Write a sheet as a PNG of twice its size, on light."""
    from PIL import Image

    width, height = round(_PIXELS * sheet.width), round(_PIXELS * sheet.height)
    picture = Image.new("RGB", (width, height))
    fine = _FINE // _PIXELS
    for upper in range(0, height, _PIXELS * _BAND):
        rows = min(height - upper, _PIXELS * _BAND)
        band = _band(sheet, (fine * width, fine * rows), fine * upper)
        picture.paste(band.reduce(fine), (0, upper))
    _write_words(picture, [*sheet.plot, *sheet.frame])
    picture.save(path)


def _band(sheet: Sheet, size: tuple[int, int], upper: int) -> Image.Image:
    """What lies in a band of a sheet that begins so many points below its upper end, fine and
    without words."""
    from PIL import Image

    band = Image.new("RGB", size, "white")
    _paint(band, [mark for mark in sheet.frame if isinstance(mark, Line)], (0, upper))
    left, top = (round(_FINE * at) for at in sheet.area[:2])
    right = round(_FINE * (sheet.area[0] + sheet.area[2]))
    bottom = round(_FINE * (sheet.area[1] + sheet.area[3]))
    first, last = max(top - upper, 0), min(bottom - upper, size[1])
    if first < last:
        inside = band.crop((left, first, right, last))
        _paint(inside, sheet.plot, (left, upper + first))
        band.paste(inside, (left, first))
    _paint(band, [mark for mark in sheet.frame if not isinstance(mark, Line)], (0, upper))
    return band


def _paint(image: Image.Image, marks: Sequence[Mark], corner: tuple[int, int]) -> None:
    """Draw marks, fine, on an image whose upper left corner is that point of the sheet."""
    from PIL import Image, ImageDraw

    drawing = ImageDraw.Draw(image)

    def point(x: float, y: float) -> tuple[int, int]:
        return round(_FINE * x) - corner[0], round(_FINE * y) - corner[1]

    for mark in marks:
        match mark:
            case Box(x, y, width, height, hue) if hue != "none":
                (left, upper), (right, lower) = point(x, y), point(x + width, y + height)
                ends = (left, upper, max(right - 1, left), max(lower - 1, upper))
                drawing.rectangle(ends, COLOURS[hue][0])
            case Line(points, hue, width, dashed):
                for part in _dashes(points) if dashed else [points]:
                    places = [point(x, y) for x, y in part]
                    drawing.line(places, COLOURS[hue][0], round(_FINE * width), "curve")
            case Dot(x, y, hue, radius):
                corners = (*point(x - radius, y - radius), *point(x + radius, y + radius))
                drawing.ellipse(corners, COLOURS[hue][0])
            case Picture(x, y, width, height, colours):
                (left, upper), (right, lower) = point(x, y), point(x + width, y + height)
                cells = _cells(colours).resize(
                    (right - left, lower - upper), Image.Resampling.NEAREST
                )
                image.paste(cells, (left, upper), cells)
            case _:
                pass


def _dashes(points: Sequence[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """The parts of a line that are drawn where it is dashed."""
    part, drawn, left = [points[0]], True, _DASH
    for (x, y), (to_x, to_y) in pairwise(points):
        length, done = math.hypot(to_x - x, to_y - y), 0.0
        while length - done > left:
            done += left
            place = (x + (to_x - x) * done / length, y + (to_y - y) * done / length)
            if drawn:
                yield [*part, place]
            part, drawn, left = [place], not drawn, _ROOM if drawn else _DASH
        left -= length - done
        part.append((to_x, to_y))
    if drawn:
        yield part


def _write_words(picture: Image.Image, marks: Sequence[Mark]) -> None:
    from PIL import Image, ImageDraw

    drawing = ImageDraw.Draw(picture)
    for mark in marks:
        match mark:
            case Words(x, y, text, anchor, hue, size, False):
                at = (_PIXELS * x, _PIXELS * y)
                drawing.text(at, text, COLOURS[hue][0], _font(size), _ANCHOR[anchor])
            case Words(x, y, text, anchor, hue, size, True):
                font = _font(size)
                ascent, descent = font.getmetrics()
                length = math.ceil(font.getlength(text))
                mask = Image.new("L", (length, ascent + descent))
                ImageDraw.Draw(mask).text((0, ascent), text, 255, font, "ls")
                above = {"start": length, "middle": length // 2, "end": 0}[anchor]
                corner = (round(_PIXELS * x) - ascent, round(_PIXELS * y) - above)
                turned = mask.transpose(Image.Transpose.ROTATE_90)
                picture.paste(COLOURS[hue][0], corner, turned)
            case Label(left, right, y, text, on) if text_width(text, 11) + 4 < right - left:
                at = (_PIXELS * (left + right) / 2, _PIXELS * y)
                drawing.text(at, text, words_on(on, 0), _font(_LABEL), "ms")
            case _:
                pass


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    """The font of words of that height, smaller than on pages, whose fonts are narrower."""
    from PIL import ImageFont

    file = distribution("matplotlib").locate_file(_FONT)
    return ImageFont.truetype(
        str(file), 0.917 * _PIXELS * size, layout_engine=ImageFont.Layout.BASIC
    )
