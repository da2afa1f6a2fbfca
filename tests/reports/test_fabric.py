"""What is shown of traffic on a fabric, and of a cluster's fabric."""

import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from hardware_profiles.schema import load_cluster
from reports.fabric import (
    collective_tables,
    fabric_tables,
    link_table,
    nic_heat,
    plane_heat,
    time_against_gpus,
    what_varies,
    write_collective_run,
)
from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario


@pytest.fixture(scope="module")
def run():
    changes = ("vary.operation.gpus=[16, 64]", "vary.operation.bytes_per_gpu=[128 MiB]")
    return simulate(load_scenario("mpft_vs_mrft", changes))


def printed(tables, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(*tables)
    return console.export_text()


def test_the_tables_say_what_varies_and_what_is_hottest(run):
    text = printed(collective_tables("mpft_vs_mrft", run.metrics))
    assert "MPFT" in text
    assert "MRFT" in text
    assert "deepep_h800 (calibrated)" in text
    assert "hottest links" in text
    assert "/nic" in text


def test_columns_that_are_the_same_everywhere_move_to_the_headline():
    same, columns, rows = what_varies(
        ("operation", "routing", "GPUs", "time", "nodes a token"),
        [["send", "ecmp", "2", "1 s", "-"], ["send", "static", "2", "1 s", "-"]],
    )
    assert same == [("operation", "send")]
    assert columns == ["routing", "GPUs", "time"]
    assert rows[0] == ["ecmp", "2", "1 s"]


def test_the_byte_table_holds_every_link_that_carried_anything(run):
    frame = link_table(run.result.last)
    assert len(frame) == len(run.result.last.link_names)
    assert frame["utilisation"].is_monotonic_decreasing
    assert frame["size_bytes"].sum() == pytest.approx(run.result.last.link_bytes.sum())


def test_heat_maps_show_each_cable_once(run):
    variant = run.result.variants[0]
    names, heat = plane_heat(variant, 0)
    network = variant.fabric.planes[0]
    assert len(names) == network.switches
    assert np.count_nonzero(~np.isnan(heat)) == network.links
    assert nic_heat(variant).shape == (8, 256)
    assert nic_heat(variant)[:, :2].min() > 0.5
    assert nic_heat(variant)[:, 2:].max() == 0


def test_time_against_gpus_has_a_line_a_topology(run):
    lines = time_against_gpus(run.metrics)
    assert len(lines) == 2
    assert all([gpus for gpus, _ in points] == [16, 64] for points in lines.values())


def test_a_run_directory_holds_report_figures_and_byte_table(run, tmp_path):
    metrics = run.metrics
    write_collective_run(run, metrics, tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Hottest links" in page
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert {
        "use_of_the_nics_links_into_the_network.png", "hottest_links.svg", "time_against_gpus.png",
    } <= figures  # fmt: skip
    assert page.count("<figure") == len(figures) / 2 == 3
    links = pd.read_parquet(tmp_path / "run" / "links.parquet")
    assert list(links) == ["link", "size_bytes", "capacity_bytes_per_s", "utilisation"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]


def test_a_cluster_is_drawn_counted_and_priced():
    text = printed(fabric_tables(load_cluster("mpft_16384")))
    assert "8 equal planes" in text
    assert "32 spines of 64 ports" in text
    assert "16,384" in text
    assert "71.32 MUSD" in text


def test_a_slim_fly_that_does_not_exist_is_counted_and_said_so():
    text = printed(fabric_tables(load_cluster("slim_fly_28")))
    assert "cannot be built" in text
    assert "no prime power" in text
    assert "32,928" in text
