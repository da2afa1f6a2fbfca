"""One palette: hues that every eye tells apart, each with one role."""

from itertools import combinations

import numpy as np
import pytest

from reference_model.pipeline_actions import WORKS
from reference_model.trace import PHASES as TRACED_PHASES
from reports import palette
from reports.palette import BACKGROUND, HUES, LINK, MUTED, SOFT, contrast, luminance, words_on
from simulator.analysis.every_metric import METRICS
from simulator.hardware.prediction import PROVENANCES

# What is left of linear red, green and blue for eyes without one sort of cones (Machado, Oliveira
# and Fernandes 2009, table 1, severity 1.0).
EYES = {
    "all cones": np.eye(3),
    "no green cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "no red cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
}  # fmt: skip


def lab(linear):
    """CIE L*a*b* of linear sRGB under D65."""
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
         [0.0193339, 0.1191920, 0.9503041]]
    )  # fmt: skip
    x, y, z = (
        np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116
        for v in to_xyz @ np.clip(linear, 0, 1) / (0.95047, 1.0, 1.08883)
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def linear(colour):
    parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == 21.0
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=5e-4)
    assert luminance("#ff0000") == pytest.approx(0.2126, abs=1e-12)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_hues_stand_out_from_the_background_and_words_from_all_they_stand_on(theme):
    page = (BACKGROUND[theme], SOFT[theme])
    bars = {name: contrast(pair[theme], page[0]) for name, pair in HUES.items()}
    assert [name for name, ratio in bars.items() if ratio < 3] == ["pale"]
    words = [contrast(of[theme], on) for of in (HUES["ink"], MUTED, LINK) for on in page]
    words += [contrast(words_on(name, theme), HUES[name][theme]) for name in HUES]
    assert [ratio for ratio in words if ratio < 4.5] == []


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("eye", EYES)
def test_no_two_hues_look_alike_to_any_eye(theme, eye):
    """A distance of 2.3 is just noticeable; ten times that is told apart at a glance, but for blue
    and sky, of which one is the paler form of the other."""
    seen = {name: lab(EYES[eye] @ linear(pair[theme])) for name, pair in HUES.items()}
    near = {
        (one, other)
        for one, other in combinations(seen, 2)
        if np.linalg.norm(seen[one] - seen[other]) < 20
    }
    assert near == set()


def test_what_a_legend_names_has_a_hue():
    assert set(palette.WORKS) == {*WORKS, "optimizer"}
    assert set(palette.PHASES) == set(TRACED_PHASES)
    assert list(palette.PROVENANCE) == list(PROVENANCES)
    assert palette.BUDGET.keys() <= {name.removeprefix("ranks.") for name in METRICS["training"]}
    named = [hue for _, hue in (*palette.WORKS.values(), *palette.PHASES.values(),
                                *palette.MEMORY.values())]  # fmt: skip
    named += [*palette.BUDGET.values(), *palette.PROVENANCE.values()]
    named += [*palette.CAUSES.values(), *palette.SERIES]
    assert set(named) <= HUES.keys()
    assert set(palette.CAUSES.values()) == set(palette.SORTS.values())
