"""What a chart is drawn with: marks on a sheet, written as SVG or PNG.

Positions are pixels from the upper left corner of a sheet. Marks name hues of the palette; whoever
writes them fills in colours. A page takes them from its style sheet, so that they follow its theme;
a file of its own carries that sheet along.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from reports.palette import COLOURS, HUES, words_on

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
class Zoom:
    """The horizontal axis of a sheet that can be zoomed."""

    low: float
    high: float
    group: str
    """Sheets of one group zoom together."""


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
    zoom: Zoom | None = None


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
    if sheet.zoom is not None:
        ends = f'data-low="{sheet.zoom.low:.9g}" data-high="{sheet.zoom.high:.9g}"'
        zoom = f' data-zoom="{escape(sheet.zoom.group)}" {ends}'
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


def _rgb(colours: Sequence[Sequence[str]]) -> list[list[tuple[float, float, float, float]]]:
    def one(colour: str) -> tuple[float, float, float, float]:
        if not colour:
            return 0.0, 0.0, 0.0, 0.0
        red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        return red, green, blue, 1.0

    return [[one(colour) for colour in row] for row in colours]


def _picture(colours: Sequence[Sequence[str]]) -> bytes:
    import numpy as np
    from matplotlib.image import imsave

    stream = io.BytesIO()
    imsave(stream, np.array(_rgb(colours)), format="png", metadata={"Software": ""})
    return stream.getvalue()


# -- PNG -------------------------------------------------------------------------------------------


def write_png(sheet: Sheet, path: Path) -> None:
    """Write a sheet as a PNG of twice its size, on light."""
    import matplotlib

    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        _canvas(sheet).savefig(path, dpi=200, metadata={"Software": ""})


def _canvas(sheet: Sheet) -> Figure:
    """The sheet on a canvas whose units are its pixels."""
    # Figure without pyplot draws with the Agg canvas and keeps no global state.
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(sheet.width / 100, sheet.height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    left, upper, width, height = sheet.area
    clip = Rectangle((left, upper), width, height, transform=axes.transData)
    lines = [mark for mark in sheet.frame if isinstance(mark, Line)]
    rest = [mark for mark in sheet.frame if not isinstance(mark, Line)]
    order = 0
    for marks, cut in ((lines, None), (sheet.plot, clip), (rest, None)):
        for _, members in groupby(marks, lambda m: (type(m), getattr(m, "hue", ""))):
            order += 1
            for artist in _artists(axes, list(members)):
                artist.set_zorder(order)
                if cut is not None:
                    artist.set_clip_path(cut)
    # Last: pictures set the ends of axes to their own.
    axes.set_xlim(0, sheet.width)
    axes.set_ylim(sheet.height, 0)
    return figure


def _artists(axes: Axes, marks: Sequence[Mark]) -> Iterator[Artist]:
    from matplotlib.collections import LineCollection, PolyCollection

    first = marks[0]
    if isinstance(first, Box):
        corners = [
            [(m.x, m.y), (m.x + m.width, m.y), (m.x + m.width, m.y + m.height),
             (m.x, m.y + m.height)]
            for m in marks if isinstance(m, Box)
        ]  # fmt: skip
        yield axes.add_collection(
            PolyCollection(corners, facecolors=_light(first.hue), linewidths=0)
        )
    elif isinstance(first, Line):
        lines = [mark for mark in marks if isinstance(mark, Line)]
        yield axes.add_collection(
            LineCollection(
                [line.points for line in lines],
                colors=_light(first.hue),
                linewidths=[0.72 * line.width for line in lines],
                linestyles=["--" if line.dashed else "-" for line in lines],
            )
        )
    elif isinstance(first, Dot):
        dots = [mark for mark in marks if isinstance(mark, Dot)]
        yield axes.scatter(
            [dot.x for dot in dots],
            [dot.y for dot in dots],
            s=[(1.44 * dot.radius) ** 2 for dot in dots],
            c=_light(first.hue),
            linewidths=0,
        )
    else:
        for mark in marks:
            yield from _artist(axes, mark)


def _artist(axes: Axes, mark: Mark) -> Iterator[Artist]:
    import numpy as np

    match mark:
        case Words(x, y, text, anchor, hue, size, upright):
            where = {"start": "left", "middle": "center", "end": "right"}[anchor]
            yield axes.text(
                x, y, text, ha="left" if upright and anchor == "start" else where,
                va="baseline", color=_light(hue), fontsize=0.66 * size,
                rotation=90 if upright else 0, rotation_mode="anchor", parse_math=False,
            )  # fmt: skip
        case Label(left, right, y, text, on) if text_width(text, 11) + 4 < right - left:
            yield axes.text(
                (left + right) / 2, y, text, ha="center", va="baseline", color=words_on(on, 0),
                fontsize=7, parse_math=False,
            )  # fmt: skip
        case Picture(x, y, width, height, colours):
            yield axes.imshow(
                np.array(_rgb(colours)), extent=(x, x + width, y + height, y), aspect="auto",
                interpolation="none",
            )  # fmt: skip
        case _:
            pass


def _light(hue: Hue) -> str:
    return "none" if hue == "none" else COLOURS[hue][0]
