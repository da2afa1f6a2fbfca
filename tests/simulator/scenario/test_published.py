"""Published figures of a scenario file."""

import pytest

from hardware_profiles.fields import to_profile
from simulator.scenario.files import load_scenario
from simulator.scenario.published import PublishedFigure


def figure(**fields):
    stated = {"name": "f", "metric": "step_time_s", "source": "a paper"} | fields
    return to_profile(PublishedFigure, stated, where="a")


@pytest.mark.parametrize(
    ("value", "si"), [(12.5, 12.5), ("129 ms", 0.129), ("153 GB/s", 153e9), ("400 Gbit/s", 50e9)]
)
def test_a_value_is_a_number_or_has_a_unit_of_time_or_bandwidth(value, si):
    assert figure(value=value).si_value == pytest.approx(si, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, "0 s", "12 GiB", "fast"])
def test_any_other_value_is_refused(value):
    with pytest.raises(ValueError, match=r"^a: "):
        figure(value=value)


@pytest.mark.parametrize(
    ("stated", "metric", "value"),
    [
        ({"bandwidth": "43 GB/s"}, "rows.algorithm_bandwidth_bytes_per_s", "43 GB/s"),
        ({"time": "163 us"}, "rows.mean_gpu_s", "163 us"),
        ({"relative_to_adaptive": 0.789}, "rows.bandwidth_over_adaptive", 0.789),
    ],
)
def test_a_transfer_of_an_older_file_is_a_figure_of_its_row(stated, metric, value):
    of = {"operation": "all_gather", "gpus": 64, "group": 8, "routing": "ecmp"}
    older = to_profile(
        PublishedFigure, of | stated | {"kind": "predicted", "source": "a paper"}, where="a"
    )
    assert older == figure(
        name="all_gather 64 8 ecmp",
        of={"operation": "all_gather", "gpus": 64, "group_gpus": 8, "routing": "ecmp"},
        metric=metric,
        value=value,
    )


def test_a_transfer_of_an_older_file_needs_one_figure():
    stated = {"operation": "send", "gpus": 2, "source": "a"}
    message = "needs one of time, bandwidth, relative_to_adaptive"
    with pytest.raises(ValueError, match=message):
        to_profile(PublishedFigure, stated, where="a")


def test_figures_of_a_collective_in_an_older_file_are_read_with_a_note(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "description: d\n"
        "cluster: leaf_spine_2048\n"
        "collective:\n"
        "  operation: {name: all_to_all, gpus: 64, bytes_per_pair: 114688 B}\n"
        "  transport: ideal\n"
        "  vary_gpus: [32, 64]\n"
        "  published: [{operation: all_to_all, gpus: 64, time: 148 us, source: s}]\n"
    )
    note = (
        r"mine.yaml: collective.published is called published now, "
        r"collective.vary_gpus is called vary.operation.gpus now$"
    )
    with pytest.warns(FutureWarning, match=note):
        scenario = load_scenario(str(path))
    assert scenario.file.vary == {"operation": {"gpus": [32, 64]}}
    assert scenario.file.published[0].of == {"operation": "all_to_all", "gpus": 64}


def test_a_figure_may_name_its_metric_as_it_was_called_before():
    with pytest.warns(FutureWarning, match="^published: speculation is called speculative_dec"):
        found = figure(metric="speculation.speed_up", value=1.8)
    assert found.metric == "speculative_decoding.speed_up"
