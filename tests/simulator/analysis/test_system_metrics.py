"""Metrics of whole systems have the units that their names say."""

from simulator.analysis.system_metrics import COLLECTIVE, FLEET, REPLAY


def test_rates_and_times_are_in_the_units_of_their_names():
    found = {metric.name: metric.unit for metric in (*COLLECTIVE, *FLEET, *REPLAY)}
    assert {unit for name, unit in found.items() if name.endswith("bytes_per_s")} == {"bytes/s"}
    times = {name for name in found if name.endswith("_s") and not name.endswith("_per_s")}
    assert {found[name] for name in times} == {"s"}
