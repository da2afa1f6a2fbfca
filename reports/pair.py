"""Tables of an overlapped pair: when each of its parts runs, and what communication it exposes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from reports.calibration import format_ms
from simulator.analysis.measured_pair import MeasuredPair
from simulator.execution.timeline import Log, hidden_communication, waiting
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
        ("kernels of the compute stream", seconds[log.graph.of_stream[Stream.COMPUTE]].sum()),
        ("transfers and what is beside them",
         seconds[log.graph.of_stream[Stream.COMMUNICATION]].sum()),
        ("communication exposed", waiting(log).exposed_communication_s),
        ("communication hidden", hidden_communication(log)),
    ):  # fmt: skip
        summary.add_row(what, format_ms(float(value)))
    parts = Table(title="its parts, in the order of issue", title_justify="left")
    for column in ("part", "stream", "phase", "layer", "segment", "after"):
        parts.add_column(column)
    for column in ("operators", "starts", "ends"):
        parts.add_column(column, justify="right")
    first = 0
    for number, part in enumerate(pair_parts(log.graph)):
        after = first + part.operators
        parts.add_row(
            str(number),
            part.stream,
            part.phase,
            str(part.layer),
            part.segment,
            ", ".join(map(str, part.after)),
            str(part.operators),
            format_ms(float(log.start_s[first])),
            format_ms(float(log.end_s[after - 1])),
        )
        first = after
    return [summary, parts]


def measured_pair_table(name: str, log: Log, pairs: Sequence[MeasuredPair]) -> Table:
    """A pair by the scenario's calibration and by measured operators, beside the measured one."""
    table = Table(title=f"pair of {name}, simulated and measured", title_justify="left")
    table.add_column("rank")
    table.add_column("from")
    for column in ("pair", "error", "exposed", "error"):
        table.add_column(column, justify="right")
    for pair in pairs:
        rank = str(pair.rank)
        table.add_row(rank, "measured", format_ms(pair.seconds), "", format_ms(pair.exposed_s), "")
        composed = [("the calibration", log), ("operators alone", pair.alone)]
        if pair.side_by_side is not None:
            composed.append(("operators side by side", pair.side_by_side))
        composed.append(("operators as in the pair", pair.as_paired))
        for source, found in composed:
            exposed = float(waiting(found).exposed_communication_s)
            table.add_row(
                rank,
                source,
                format_ms(found.span_s),
                f"{found.span_s / pair.seconds - 1:+.1%}",
                format_ms(exposed),
                f"{'+' if exposed >= pair.exposed_s else ''}{format_ms(exposed - pair.exposed_s)}",
            )
    return table
