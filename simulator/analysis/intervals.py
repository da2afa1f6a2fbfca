"""Turn the intervals of kernel times into 80 % intervals of simulated ones.

A graph is run for all draws of its kernel times (execution.draws) at once: order and dependencies
stay, every time is an array [samples].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Seconds
from simulator.execution import timeline
from simulator.execution.draws import Draws, estimated, interval, scaled_seconds
from simulator.execution.serving_step import ServingStep

Array = NDArray[np.float64]


def serving_interval(step: ServingStep, *, seed: int) -> list[Seconds]:
    """80 % interval of the time of a serving iteration, host overhead included.

    Where ranks differ, the relative width of one mean rank is that of the slowest.
    """
    model, times = step.model, step.times
    common_share = model.kernels.calibration.common_share
    draws = Draws(np.random.default_rng(seed), common_share=common_share)
    scaled = scaled_seconds(times, draws)
    gap, host = model.job.gap, model.job.host_overhead
    middle = timeline.run(model.graph, times.seconds[model.places], gap.value).span_s
    samples = timeline.run(model.graph, scaled[model.places], estimated(gap, draws.gap))
    ratio = samples.spans_s / middle
    spans = np.maximum(step.log.span_s * ratio, step.host_s)
    return interval(spans + estimated(host, draws.host), value=step.step_s)
