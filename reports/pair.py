"""Tables of an overlapped pair: when each of its parts runs, and what communication it exposes."""

from __future__ import annotations

from rich.table import Table

from reports.calibration import format_ms
from simulator.execution.timeline import Log, hidden_communication, of_stream, waiting
from simulator.workload.pair_order import pair_parts
from simulator.workload.task_graph import Stream


def pair_tables(name: str, log: Log) -> list[Table]:
    """The pair in figures, and its parts in the order of issue."""
    seconds = log.end_s - log.start_s
    summary = Table(title=f"pair of {name}", title_justify="left", show_header=False)
    summary.add_column("what")
    summary.add_column("time", justify="right")
    for what, value in (
        ("pair", log.span_s),
        ("kernels of the compute stream", seconds[of_stream(log.graph, Stream.COMPUTE)].sum()),
        ("transfers and what is beside them",
         seconds[of_stream(log.graph, Stream.COMMUNICATION)].sum()),
        ("communication exposed", waiting(log).exposed_communication_s),
        ("communication hidden", hidden_communication(log)),
    ):  # fmt: skip
        summary.add_row(what, format_ms(float(value)))
    parts = Table(title="its parts, in the order of issue", title_justify="left")
    for column in ("part", "stream", "phase", "layer", "segment", "after"):
        parts.add_column(column)
    for column in ("operators", "starts", "ends"):
        parts.add_column(column, justify="right")
    for number, part in enumerate(pair_parts(log.graph)):
        parts.add_row(
            str(number),
            part.stream,
            part.phase,
            str(part.layer),
            part.segment,
            ", ".join(map(str, part.after)),
            str(len(part.tasks)),
            format_ms(float(log.start_s[part.tasks[0]])),
            format_ms(float(log.end_s[part.tasks[-1]])),
        )
    return [summary, parts]
