"""What holds for every shipped scenario: one validator, and the table scenario x invariant.

    python tests/invariants.py [WORD ...]

Each invariant is asked of each scenario, or of those whose name holds a word, and the table of
docs/invariants.md is written, or the rows of those scenarios in it. Fleets run on a few hundred
requests.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fleets import check_conservation
from goldens import OF_THE_MACHINE
from serving_checks import check_rows, check_step
from training_checks import check_parts

from simulator.analysis.run import Run, simulate
from simulator.execution.fleet.log import CollectedLog
from simulator.scenario.files import Scenario, known_scenarios, load_scenario, write_resolved
from simulator.workload.task_graph import Stream

SHORT = {
    "synthetic_1m": ("requests.synthetic.count=300", "warm_up=0 s"),
    "day6_service": ("requests.limit=300", "warm_up=0 s"),
    "azure_code": ("requests.limit=100", "warm_up=0 s"),
    "azure_conversation": ("requests.limit=100", "warm_up=0 s"),
    "mooncake_conversation": ("requests.limit=100", "warm_up=0 s"),
}
"""What makes runs of fleets short."""

TIMES = ("step_time_s", "pass_time_s", "completion_s", "tpot_s.mean", "training_s")
FASTER = (
    "cluster.node.nic.bandwidth",
    "cluster.node.gpu.nvlink_bandwidth",
    "cluster.node.gpu.hbm_bandwidth",
)


def run_of(name: str, *changes: str) -> Run[Any]:
    return simulate(load_scenario(name, (*SHORT.get(name, ()), *changes)))


def time_of(metrics: Any) -> float | None:
    """The time that a job is about, of ranks that are alike where there is such a figure.

    What is expected of ranks that differ also holds what is not known: kernels of a part that
    nobody measured are less certain, and ranks wait for the worst of them.
    """
    for path in TIMES:
        if path in metrics.get("ideal", {}):
            return float(metrics["ideal"][path])
        value = metrics
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return float(value)
    return None


def figures_are_numbers(name: str, run: Run[Any]) -> None:
    """Every figure is finite."""
    json.dumps(run.quick_metrics, allow_nan=False)


def times_lie_within_bounds(name: str, run: Run[Any]) -> bool | None:
    """max(compute, communication) <= time <= their sum, gaps included; no link sends faster than
    it can; a path through the log takes no longer than the log."""
    result = run.result
    match run.scenario.job_name:
        case "training":
            gap = result.job.gap.value
            for chunk in result.step.chunks.values():
                sums = dict.fromkeys(Stream, 0.0)
                for task, seconds in zip(chunk.log.graph.tasks, chunk.cost.seconds, strict=True):
                    sums[task.stream] += float(seconds)
                at_most = sum(sums.values()) + gap * len(chunk.log.graph.tasks)
                assert max(sums.values()) <= chunk.log.span_s <= at_most * (1 + 1e-12)
            pipeline = result.step.pipeline
            assert pipeline.busy_s.max() <= pipeline.makespan_s <= result.step.step_time_s
        case "serving_step":
            check_step(result.step)
        case "collective":
            for variant in result.variants:
                assert np.all(variant.link_utilisation <= 1 + 1e-9)
        case "tpot_limit":
            # A transfer's time here is that of a dispatch and a combine.
            exchanges, compute = result.transfers / 2, run.scenario.job.compute_per_layer
            assert result.tpot_s >= exchanges * max(compute, result.transfer_s) * (1 - 1e-12)
            assert result.tpot_s <= exchanges * (compute + result.transfer_s) * (1 + 1e-12)
        case "offload":
            assert max(result.fixed_s, result.experts_s) <= result.token_s
            assert result.token_s <= (result.fixed_s + result.experts_s) * (1 + 1e-12)
        case "pretraining":
            for log, slower in zip(result.logs, result.slower, strict=True):
                assert log.wall_s >= result.training_s * slower * (1 - 1e-9)
        case _:
            return False
    return True


def all_that_is_sent_arrives(name: str, run: Run[Any]) -> bool:
    """Bytes of operations are those of their flows, tokens that experts are sent are those that
    they receive; layers, parameters, time and memory of ranks are sums of their parts; of a fleet
    each request ends once with all its tokens, and KV cache allocated is KV cache freed."""
    match run.scenario.job_name:
        case "training":
            check_parts(run.result)
        case "serving_step":
            check_rows(run.result.step)
        case "collective":
            for variant in run.result.variants:
                for operation in variant.operations:
                    assert operation.bytes_total >= 0
                    assert operation.bytes_total == 0 or variant.link_bytes.sum() > 0
        case "fleet":
            log = CollectedLog()
            again = run.result.simulation.run(log)
            check_conservation(again, log.all_requests())
        case _:
            return False
    return True


def one_seed_gives_one_result(name: str, run: Run[Any]) -> None:
    """Run again, every figure is the same to the last bit, but for how fast the machine was."""
    first, again = (json.dumps(figures_alone(one.quick_metrics)) for one in (run, run_of(name)))
    assert first == again


def figures_alone(value: Any) -> Any:
    """The same metrics without what says how fast the simulation itself ran."""
    if isinstance(value, dict):
        return {
            key: figures_alone(inner) for key, inner in value.items() if key not in OF_THE_MACHINE
        }
    return [figures_alone(inner) for inner in value] if isinstance(value, list) else value


def a_faster_part_slows_nothing(name: str, run: Run[Any]) -> bool:
    """With twice the bandwidth of NICs, NVLink or HBM a job takes no longer on ideal ranks."""
    before = time_of(run.quick_metrics)
    cluster = run.scenario.named_cluster
    if run.scenario.job_name in ("fleet", "pretraining") or before is None or cluster is None:
        return False
    for path, bandwidth in zip(
        FASTER,
        (cluster.node.nic.bandwidth, cluster.node.gpu.nvlink_bandwidth,
         cluster.node.gpu.hbm_bandwidth),
        strict=True,
    ):  # fmt: skip
        after = time_of(run_of(name, f"{path}={2 * bandwidth / 1e9} GB/s").quick_metrics)
        assert after is not None, path
        assert after <= before * (1 + 1e-9), (path, before, after)
    return True


def what_is_written_reads_back(name: str, run: Run[Any]) -> None:
    """The resolved scenario, with all files that it names inside, loads to the same scenario."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resolved.yaml"
        path.write_text(write_resolved(run.scenario), encoding="utf-8")
        again: Scenario = load_scenario(str(path))
    assert again.job == run.scenario.job
    assert again.resolved == run.scenario.resolved


INVARIANTS: dict[str, Callable[[str, Run[Any]], bool | None]] = {
    check.__name__: check
    for check in (
        figures_are_numbers,
        times_lie_within_bounds,
        all_that_is_sent_arrives,
        one_seed_gives_one_result,
        a_faster_part_slows_nothing,
        what_is_written_reads_back,
    )
}


def held(name: str) -> dict[str, str]:
    """{invariant: "holds", "-" where it says nothing of the job, or what breaks it}"""
    run = run_of(name)
    found = {}
    for invariant, check in INVARIANTS.items():
        try:
            found[invariant] = "-" if check(name, run) is False else "holds"
        except (AssertionError, ValueError) as error:
            found[invariant] = f"BROKEN: {' '.join(str(error).split())[:200] or 'see the check'}"
    return found


PAGE = Path(__file__).parents[1] / "docs" / "invariants.md"
HEAD = """\
# Invariants, scenario by scenario

What has to hold whatever the numbers are, asked of every shipped scenario. `python
tests/invariants.py` runs them all, fleets on their first 100 or 300 requests, and writes this page;
`make slow` asks again.

"""
SAYS_NOTHING = """
A dash: the invariant says nothing of the job. TPOT limits and offloading are closed forms, in which
nothing is sent; what a faster part makes of a fleet or of a whole run depends on which requests or
failures it then meets.
"""


def page(rows: dict[str, dict[str, str]]) -> str:
    """The text of docs/invariants.md.

    Args:
        rows: {scenario: {invariant: "holds", "-" or what breaks it}}
    """
    meanings = (
        f"- **{words(key)}**: {' '.join((check.__doc__ or '').split())}\n"
        for key, check in INVARIANTS.items()
    )
    lines = [["scenario", *map(words, INVARIANTS)], ["---"] * (1 + len(INVARIANTS))]
    lines += [[f"`{name}`", *cells.values()] for name, cells in rows.items()]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"{HEAD}{''.join(meanings)}\n{table}{SAYS_NOTHING}"


def words(name: str) -> str:
    """A name of Python in words."""
    return name.replace("_", " ")


def rows_of(text: str) -> dict[str, dict[str, str]]:
    """The rows of such a page."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
            rows[name] = dict(zip(INVARIANTS, cells, strict=True))
    return rows


def main() -> int:
    """Ask the invariants and write them down; each scenario as soon as it is done."""
    asked = sys.argv[1:]
    known = rows_of(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    names = [name for name in known_scenarios() if not asked or any(word in name for word in asked)]
    broken = 0
    for name in names:
        known[name] = held(name)
        broken += sum(text.startswith("BROKEN") for text in known[name].values())
        print(name, *(f"{words(key)}: {text};" for key, text in known[name].items()), flush=True)
        every = {each: known[each] for each in known_scenarios() if each in known}
        PAGE.write_text(page(every), encoding="utf-8")
    return broken > 0


if __name__ == "__main__":
    sys.exit(main())
