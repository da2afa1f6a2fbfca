"""Metrics of steps have the units that their names say."""

from simulator.analysis.step_metrics import EVERY_JOB, OFFLOAD, SERVING_STEP, TPOT_LIMIT, TRAINING


def test_rates_and_times_are_in_the_units_of_their_names():
    tables = (*EVERY_JOB, *TRAINING, *SERVING_STEP, *TPOT_LIMIT, *OFFLOAD)
    found = {metric.name: metric.unit for metric in tables}
    assert {unit for name, unit in found.items() if name.endswith("bytes_per_s")} == {"bytes/s"}
    times = {name for name in found if name.endswith("_s") and not name.endswith("_per_s")}
    assert {found[name] for name in times} == {"s"}
