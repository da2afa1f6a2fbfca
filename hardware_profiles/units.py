"""Turn text with units into SI floats, and SI floats into text; the only unit code of the project.

Inside the program every quantity is a plain float in SI units: seconds, bytes, FLOPs (one
multiply-add is 2), bytes per second in one direction, dense peaks. Text with a unit exists only at
the edges: YAML files, ``--set`` values and printed output.

Units are case-sensitive, because a bit is an eighth of a byte: ``bit`` and ``B`` are the only
spellings. Decimal prefixes are k, M, G, T, P, E; binary ones Ki, Mi, Gi, Ti, Pi.
"""

import math
import re
from collections.abc import Mapping
from typing import Literal, TypeAlias

from hardware_profiles.suggestions import as_written, did_you_mean

Seconds: TypeAlias = float
Bytes: TypeAlias = float
Flops: TypeAlias = float
BytesPerSecond: TypeAlias = float
FlopsPerSecond: TypeAlias = float
Watts: TypeAlias = float
Dollars: TypeAlias = float

Dimension: TypeAlias = Literal[
    "time", "data", "bandwidth", "flops", "compute", "frequency", "power", "price", "price_rate"
]

_DECIMAL = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_MINUTE = 60.0
_HOUR = 3600.0
_DAY = 86400.0
_BITS_PER_BYTE = 8.0


def _prefixed(unit: str, factor: float, *, binary: bool) -> dict[str, float]:
    prefixes = {**_DECIMAL, **_BINARY} if binary else _DECIMAL
    return {prefix + unit: scale * factor for prefix, scale in prefixes.items()}


_DATA = {
    **_prefixed("B", 1.0, binary=True),
    **_prefixed("bit", 1.0 / _BITS_PER_BYTE, binary=True),
}

UNITS: Mapping[Dimension, Mapping[str, float]] = {
    "time": {
        "s": 1.0,
        "ms": 1e-3,
        "us": 1e-6,
        "ns": 1e-9,
        "min": _MINUTE,
        "h": _HOUR,
        "d": _DAY,
    },
    "data": _DATA,
    "bandwidth": {f"{unit}/s": factor for unit, factor in _DATA.items()},
    "flops": _prefixed("FLOP", 1.0, binary=False),
    "compute": _prefixed("FLOP/s", 1.0, binary=False),
    "frequency": _prefixed("Hz", 1.0, binary=False),
    "power": _prefixed("W", 1.0, binary=False),
    "price": _prefixed("USD", 1.0, binary=False),
    "price_rate": {"USD/s": 1.0, "USD/h": 1.0 / _HOUR, "USD/d": 1.0 / _DAY},
}
"""Every unit that is understood, with its size in SI: {dimension: {unit: factor}}."""

_EXAMPLES: Mapping[Dimension, str] = {
    "time": "2.8 us",
    "data": "80 GiB",
    "bandwidth": "400 Gbit/s or 3.35 TB/s",
    "flops": "250 GFLOP",
    "compute": "989 TFLOP/s",
    "frequency": "1830 MHz",
    "power": "700 W",
    "price": "500 USD",
    "price_rate": "2 USD/h",
}

# Units that output chooses from, largest first: a value is shown in the first one it fills.
_SHOWN: Mapping[Dimension, tuple[str, ...]] = {
    "time": ("s", "ms", "us", "ns"),
    "data": ("TiB", "GiB", "MiB", "KiB", "B"),
    "bandwidth": ("TB/s", "GB/s", "MB/s", "kB/s", "B/s"),
    "flops": ("EFLOP", "PFLOP", "TFLOP", "GFLOP", "MFLOP", "FLOP"),
    "compute": ("PFLOP/s", "TFLOP/s", "GFLOP/s", "MFLOP/s", "FLOP/s"),
    "frequency": ("GHz", "MHz", "kHz", "Hz"),
    "power": ("MW", "kW", "W"),
    "price": ("MUSD", "USD"),
    "price_rate": ("USD/h",),
}

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\S*)")


def parse_quantity(text: object, dimension: Dimension, where: str) -> float:
    """Read a number with its unit, such as ``"400 Gbit/s"``, as an SI float.

    ``where`` names the file and field for the error message. Raises ValueError for anything but
    text with a unit of this dimension: a bare number, an unknown unit, a non-finite value.
    """
    example = _EXAMPLES[dimension]
    if isinstance(text, bool) or not isinstance(text, str):
        raise ValueError(
            f"{where}: {as_written(text)} has no unit; write text with a unit, such as {example}"
        )
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{where}: {text!r} is not a number with a unit, such as {example}")
    number, unit = match.groups()
    if not unit:
        raise ValueError(f"{where}: {text!r} has no unit; write for example {example}")
    value = float(number) * unit_factor(unit, dimension, where=f"{where}: {text!r}")
    if not math.isfinite(value):
        raise ValueError(f"{where}: {text!r} is too large")
    return value


def unit_factor(unit: str, dimension: Dimension, *, where: str = "unit") -> float:
    """Return how many SI units one ``unit`` is: 1e-6 for ``("us", "time")``.

    For tables whose columns carry the unit in their name. Raises ValueError for an unknown unit.
    """
    units = UNITS[dimension]
    if unit not in units:
        meant = _meant(unit, dimension)
        allowed = did_you_mean(meant) if meant else f"allowed: {', '.join(units)}"
        raise ValueError(
            f"{where}: unknown unit {unit!r} for {dimension.replace('_', ' ')}; {allowed}"
            f"{'' if meant else f'; for example {_EXAMPLES[dimension]}'}"
        )
    return units[unit]


def example_of(dimension: Dimension) -> str:
    """A quantity as files have it: "400 Gbit/s or 3.35 TB/s"."""
    return _EXAMPLES[dimension]


_WORDS = {
    "s": ("sec", "secs", "second", "seconds"),
    "ms": ("msec", "millisecond", "milliseconds"),
    "us": ("usec", "microsecond", "microseconds", "\u00b5s", "\u03bcs"),
    "ns": ("nsec", "nanosecond", "nanoseconds"),
    "min": ("m", "mins", "minute", "minutes"),
    "h": ("hr", "hrs", "hour", "hours"),
    "d": ("day", "days"),
    "B": ("byte", "bytes"),
    "bit": ("bits",),
    "W": ("watt", "watts"),
    "USD": ("$", "dollar", "dollars"),
}
"""{unit: other words for it}"""


def _meant(unit: str, dimension: Dimension) -> list[str]:
    """The units of a dimension that another spelling may stand for."""
    units = UNITS[dimension]
    words = {word: written for written, others in _WORDS.items() for word in others}
    # "Gbps", "TFLOPS", "GB per second": what is counted, and whether it is a rate.
    rate = re.fullmatch(r"(.+?)(ps|S|s|/(\w+))", unit.replace(" per ", "/"))
    counted, per = (rate[1], f"/{words.get(rate[3] or 's', rate[3] or 's')}") if rate else ("", "")
    # A small b is a bit where the prefix is written as it ought to be.
    bits = re.sub(r"^([kMGTPE]i?|)b$", r"\1bit", counted or unit)
    candidates = [
        words.get(unit.lower(), unit),
        f"{unit}/s",
        f"{words.get(counted, bits)}{per}" if rate else bits,
    ]
    found = [one for one in candidates if one in units]
    # Letters of any case: gb/s may be bytes or bits.
    alike = {text.lower() for text in (unit, counted + per, re.sub("s$", "/s", unit))}
    if "b" in unit:
        alike |= {re.sub(r"b(/s)?$", r"bit\1", text) for text in alike}
    return found[:1] or [one for one in units if one.lower() in alike]


def format_quantity(value: float, dimension: Dimension, *, digits: int = 4) -> str:
    """Write an SI float with the largest fitting unit and ``digits`` significant digits.

    The text is accepted by ``parse_quantity`` and reads back to within the shown digits.
    """
    if not math.isfinite(value):
        raise ValueError(f"cannot show {value!r} as {dimension}: not a finite number")
    shown = _SHOWN[dimension]
    units = UNITS[dimension]
    # Rounding first: 999.99 us with 4 digits is 1 ms, not 1000 us.
    rounded = float(f"{value:.{digits - 1}e}")
    unit = next((u for u in shown if abs(rounded) >= units[u]), shown[-1])
    return f"{_plain(value / units[unit], digits)} {unit}"


def format_seconds(value: Seconds, *, digits: int = 4) -> str:
    """Write a duration: ``format_seconds(0.129)`` is ``"129 ms"``."""
    return format_quantity(value, "time", digits=digits)


def format_bytes(value: Bytes, *, digits: int = 4) -> str:
    """Write an amount of data in binary units: ``"79.11 GiB"``."""
    return format_quantity(value, "data", digits=digits)


def format_bandwidth(value: BytesPerSecond, *, digits: int = 4) -> str:
    """Write a bandwidth in decimal bytes per second: ``"50 GB/s"``."""
    return format_quantity(value, "bandwidth", digits=digits)


def format_compute(value: FlopsPerSecond, *, digits: int = 4) -> str:
    """Write a rate of arithmetic: ``"989 TFLOP/s"``."""
    return format_quantity(value, "compute", digits=digits)


def _plain(number: float, digits: int) -> str:
    """Write ``digits`` significant digits without an exponent where that stays readable."""
    text = f"{number:.{digits}g}"
    if "e" not in text:
        return text
    exponent = int(text.split("e")[1])
    return f"{number:.0f}" if 0 < exponent < digits + 3 else text
