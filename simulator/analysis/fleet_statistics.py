"""Statistics of a fleet run, gathered in bounded memory while it runs.

FleetStatistics is the FleetLog that a run writes to. It keeps no rows, so that memory does not grow
with simulated time. What belongs to the window from the end of the warm-up to the last arrival, and
what to every request after the warm-up, is said and explained in fleet_metrics.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.analysis.streaming import Floats, LogHistogram, TimeBins
from simulator.execution.fleet.log import Outcome, RowBlock
from simulator.scenario.fleet import FleetJob

_SPAN_POINTS = 4
"""Points at which the slowly growing steps of one iteration are counted."""


class FleetStatistics:
    """Histograms, sums and time series of a fleet run, filled while it runs."""

    def __init__(self, job: FleetJob, *, first: int | None = None) -> None:
        """
        Args:
            first: count the first so many requests to arrive alone, and end the window with the
                arrival of the last of them; by default all requests.
        """
        self._job = job
        self._first = first
        self._warm_up_s = job.warm_up
        self._window_end_s = math.inf
        self.ttft = LogHistogram()
        self.tpot = LogHistogram()
        self.itl = LogHistogram()
        self.e2e = LogHistogram()
        self.queueing = LogHistogram()
        self.decode_wait = LogHistogram()
        self.good = 0
        """Requests that finish in the window and meet the service level."""
        self.counted = 0
        """Finished requests that arrived after the warm-up."""
        self.preempted = 0
        """Those of them that were preempted."""
        self.arrived = 0
        """Requests that arrived after the warm-up and ended in any way, or never."""
        self.refused = 0
        """Those of them for which there was no place in the queue or no instance."""
        self.service_seconds = 0.0
        """Their time inside the service but for the queues before prefill and decode."""
        self.stay_seconds = 0.0
        """Time inside the service, of all requests of the run."""
        self.blocks = 0.0
        self.hit_blocks = 0.0
        self.prompt_tokens = 0.0
        self.cached_tokens = 0.0
        self.attended_tokens = 0.0
        """Tokens attended to, summed over the prompt tokens that are not cached."""
        self.instances: dict[int, dict[str, float]] = {}
        """Sums within the window, by instance number."""
        self.series = TimeBins(
            (
                "output_tokens",
                "input_tokens",
                "batch_seconds",
                "decode_seconds",
                "kv_token_seconds",
                "waiting_prefill",
                "waiting_decode",
                "in_system",
                "samples",
                "arrivals",
            ),
            width_s=job.sample_interval,
        )
        self._arrived = 0.0
        decodes = "colocated" if "colocated" in job.pools else "decode"
        first = 0
        for name, pool in job.pools.items():
            if name == decodes:
                self._decoding = (first, first + pool.instances)
            first += pool.instances

    @property
    def window_s(self) -> tuple[float, float]:
        """Start and end of the window; the end is infinite until it is known."""
        return self._warm_up_s, self._window_end_s

    def first_arrived(self, now_s: float) -> None:
        if self._first is not None:
            self._end_window(now_s)

    def arrivals_ended(self, now_s: float) -> None:
        if self._first is None:
            self._end_window(now_s)

    def _end_window(self, now_s: float) -> None:
        # A burst is over before anything comes of it; its window is the whole run behind it.
        if now_s >= self._warm_up_s + self._job.sample_interval:
            self._window_end_s = now_s

    def requests(self, block: RowBlock) -> None:
        if self._first is not None:
            block = block.where(block["request"] < self._first)
        arrival, end = block["arrival_s"], block["end_s"]
        self.stay_seconds += float((end - arrival).sum())
        counted = arrival >= self._warm_up_s
        self.arrived += int(counted.sum())
        refused = np.isin(
            block["outcome"], (Outcome.REJECTED_QUEUE_FULL, Outcome.REJECTED_NO_CAPACITY)
        )
        self.refused += int((refused & counted).sum())
        # What has happened to a request counts, whether or not the run lasts until its end.
        self._count_prompts(block.where(counted & (block["prefill_start_s"] >= 0)))
        finished = block["outcome"] == Outcome.FINISHED
        self._count_stays(block.where(finished & counted))
        inside = (end >= self._warm_up_s) & (end <= self._window_end_s)
        self._count_ended(block.where(finished & inside))

    def _count_prompts(self, rows: RowBlock) -> None:
        """Requests after the warm-up whose prefill has begun."""
        first = rows["first_token_s"]
        self.queueing.add(rows["prefill_start_s"] - rows["arrival_s"])
        self.ttft.add((first - rows["arrival_s"])[first >= 0])
        self.decode_wait.add(_decode_wait_s(rows))
        self.blocks += float(rows["blocks"].sum())
        self.hit_blocks += float(rows["hit_blocks"].sum())
        prompt, cached = rows["prompt_tokens"], rows["cached_tokens"]
        self.prompt_tokens += float(prompt.sum())
        self.cached_tokens += float(cached.sum())
        # Token n of a prompt attends to n tokens.
        self.attended_tokens += float(((prompt - cached) * (prompt + cached + 1) / 2).sum())

    def _count_stays(self, rows: RowBlock) -> None:
        """Requests after the warm-up that finish."""
        self.counted += len(rows)
        self.preempted += int((rows["preemptions"] > 0).sum())
        stays = float((rows["end_s"] - rows["prefill_start_s"]).sum())
        self.service_seconds += stays - float(_decode_wait_s(rows).sum())

    def _count_ended(self, rows: RowBlock) -> None:
        """Requests that end in the window."""
        arrival, end, first = rows["arrival_s"], rows["end_s"], rows["first_token_s"]
        later_tokens = rows["output_tokens"] - 1
        several = later_tokens > 0
        tpot = np.zeros(len(rows))
        tpot[several] = (end - first)[several] / later_tokens[several]
        self.tpot.add(tpot[several])
        self.e2e.add(end - arrival)
        limits = self._job.service_level
        self.good += int(((first - arrival <= limits.ttft) & (tpot <= limits.tpot)).sum())

    def iterations(self, block: RowBlock) -> None:
        start, end = block["start_s"], block["end_s"]
        span = end - start
        inside = np.minimum(end, self._window_end_s) - np.maximum(start, self._warm_up_s)
        share = np.where(span > 0, np.clip(inside / np.where(span > 0, span, 1.0), 0.0, 1.0), 0.0)
        number = block["instance"].astype(np.int64)
        sums = {
            "busy_seconds": span,
            "decode_seconds": np.where(block["batch"] > 0, span, 0.0),
            "output_tokens": block["output_tokens"],
            "prompt_tokens": block["prompt_tokens"],
            "prefill_tokens": block["prefill_tokens"],
            "kv_token_seconds": block["kv_tokens"] * span,
            "batch_seconds": block["batch"] * span,
            "passes": (block["prefill_tokens"] > 0).astype(np.float64),
            "pass_seconds": block["pass_s"],
            "even_pass_seconds": block["even_pass_s"],
        }
        for name, values in sums.items():
            for instance, total in enumerate(np.bincount(number, values * share)):
                if total:
                    kept = self.instances.setdefault(instance, dict.fromkeys(sums, 0.0))
                    kept[name] += float(total)
        decodes = (number >= self._decoding[0]) & (number < self._decoding[1])
        self.series.add_over(
            start,
            end,
            output_tokens=block["output_tokens"],
            input_tokens=block["prompt_tokens"],
            batch_seconds=sums["batch_seconds"],
            decode_seconds=sums["decode_seconds"],
            kv_token_seconds=np.where(decodes, sums["kv_token_seconds"], 0.0),
        )
        self._count_gaps(block.where((block["steps"] > 0) & (share > 0)))

    def _count_gaps(self, rows: RowBlock) -> None:
        """Each request of a batch sees a gap at each step, but for the first step of a joiner."""
        batch, steps = rows["batch"], rows["steps"]
        self.itl.add(rows["first_step_s"], batch - rows["joined"])
        several = rows.where(steps > 1)
        later = several["steps"] - 1
        mean = (several["end_s"] - several["start_s"] - several["first_step_s"]) / later
        # Steps of one iteration grow linearly: its last one lies as far above their mean as its
        # first below it.
        half_range = several["last_step_s"] - mean
        for point in range(_SPAN_POINTS):
            position = (2 * point + 1) / _SPAN_POINTS - 1
            self.itl.add(mean + position * half_range, several["batch"] * later / _SPAN_POINTS)
        self.itl.add_zeros(float((batch * steps).sum()) * (self._job.tokens_per_step - 1))

    def gaps(self, block: RowBlock) -> None:
        end = block["end_s"]
        counted = (end >= self._warm_up_s) & (end <= self._window_end_s)
        self.itl.add(block["gap_s"][counted])

    def samples(self, block: RowBlock) -> None:
        time = block["time_s"]
        arrived = np.diff(block["arrived"], prepend=self._arrived)
        self._arrived = float(block["arrived"][-1])
        self.series.add_at(
            time,
            waiting_prefill=block["waiting_prefill"],
            waiting_decode=block["waiting_decode"],
            in_system=block["in_system"],
            samples=np.ones(len(time)),
            arrivals=arrived,
        )


def _decode_wait_s(rows: RowBlock) -> Floats:
    """From first token to first decode step, of the requests that come so far."""
    begun = rows["decode_start_s"]
    wait: Floats = (begun - rows["first_token_s"])[begun >= 0]
    return wait
