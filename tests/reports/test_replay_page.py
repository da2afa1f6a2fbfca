"""The page of a replayed profile."""

import pandas as pd

from reports.replay_page import timeline_chart


def test_kernels_too_short_to_be_seen_are_drawn_together():
    count = 100
    starts = [1e-6 * n for n in range(count)] + [1.0]
    ends = [start + 5e-7 for start in starts]
    frame = pd.DataFrame(
        {
            "stream": 7, "class": "compute", "operator": "gemm", "annotation": "",
            "measured_start_s": starts, "measured_end_s": ends,
            "simulated_start_s": starts, "simulated_end_s": ends,
        }
    )  # fmt: skip
    chart = timeline_chart(frame)
    assert [span.tip for span in chart.spans if span.lane == 0] == [
        "100 short kernels", "gemm\n500 ns",
    ]  # fmt: skip
    assert chart.legend == (("compute", "blue"),)
