"""Name in messages what somebody wrote, and which of the known names they may have meant."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

ALIKE = 0.75
"""Share of alike characters from which on a name is taken for another misspelt."""

SHORT = 3
"""Letters of a beginning from which on it stands for names."""

MOST = 3
"""Names that are suggested at once."""


def as_written(value: object) -> str:
    """A value as files and --set have it: 'text', 1.5, true, null, ['a', 2], {a: .inf}."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_written(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_written, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value).replace("inf", ".inf").replace("nan", ".nan")
    return repr(value)


def closest(name: str, known: Collection[str]) -> list[str]:
    """The known names that a name may stand for, likeliest first, at most three.

    Spelling counts first (h800-2048 for h800_2048), then names that begin with it or hold all of
    its words (h800 for h800_sxm).
    """
    plain = {_plain(one): one for one in known}
    wanted = _plain(name)
    if wanted in plain:
        return [plain[wanted]]
    alike = get_close_matches(wanted, plain, n=MOST, cutoff=ALIKE)
    first, *rest = wanted.split("_")
    family = [one for one in plain if one.startswith(f"{first}_")]
    if rest and 0 < len(family) <= MOST:
        # Another member of a small family, h800_4096 of h800_2048, before others that look alike.
        return [plain[one] for one in sorted(family, key=lambda one: one not in alike)]
    words = {first, *rest}
    longer = [one for one in plain if one.startswith(wanted) or words <= set(one.split("_"))]
    if len(wanted) < SHORT:
        longer = []
    if len(longer) > MOST:
        longer = []  # What all of them begin with tells none from the others.
    return [plain[one] for one in alike or sorted(longer)]


def meant_or_known(name: str, known: Collection[str], *, otherwise: str = "") -> str:
    """The end of a message about an unknown name: "did you mean h800_sxm?", or where nothing comes
    near, "known: " and all names.

    Args:
        otherwise: what may be given in the place of a name: "a path to a .yaml file".
    """
    close = closest(name, known)
    if close:
        return did_you_mean([*close, *([otherwise] if otherwise else [])])
    return f"known: {', '.join(sorted(known))}{f'; or give {otherwise}' if otherwise else ''}"


def did_you_mean(names: Sequence[str]) -> str:
    """The question for one name or several."""
    *first, last = names
    return f"did you mean {', '.join(first)}{' or ' if first else ''}{last}?"


def _plain(name: object) -> str:
    """A name without what people write in several ways; a number can be a name in YAML."""
    return re.sub(r"[-_. ]+", "_", str(name).strip().lower())
