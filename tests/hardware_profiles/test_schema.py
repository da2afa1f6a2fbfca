"""Profiles: shipped files load, wrong ones are one clear error."""

import re
from typing import Any

import pytest
import yaml

from hardware_profiles.fields import ROOT, read_yaml, to_profile
from hardware_profiles.profile_files import read_profile
from hardware_profiles.schema import (
    CalibrationProfile,
    ClusterProfile,
    GpuProfile,
    known_calibrations,
    known_clusters,
    known_gpus,
    load_calibration,
    load_cluster,
    load_gpu,
    resolve_cluster,
)


def unsourced(raw: dict[str, Any], path: str = "") -> list[str]:
    """Quantities of a file without a source beside them; estimates carry their own."""
    missing = []
    sources = raw.get("sources", {})
    for field, value in raw.items():
        if isinstance(value, dict) and field != "sources":
            nested = value if field not in sources else {}
            missing += unsourced(nested, f"{path}{field}.")
        elif isinstance(value, str) and re.match(r"[\d.]+ ", value) and "source" not in raw:
            missing += [] if sources.get(field) else [path + field]
    return missing


@pytest.mark.parametrize("name", known_gpus())
def test_every_value_of_a_shipped_gpu_has_a_source(name):
    gpu = load_gpu(name)
    assert gpu.name == name
    assert not unsourced(read_profile("gpus", name)[0])


@pytest.mark.parametrize("name", known_clusters())
def test_every_value_of_a_shipped_cluster_has_a_source(name):
    cluster = load_cluster(name)
    assert cluster.name == name
    assert not unsourced(read_profile("clusters", name)[0])


@pytest.mark.parametrize("name", known_calibrations())
def test_every_input_of_a_shipped_calibration_has_a_source(name):
    calibration = load_calibration(name)
    assert calibration.name == name
    assert calibration.gpu in known_gpus()
    assert not unsourced(read_profile("calibrations", name)[0])
    for table in calibration.measurements:
        assert (ROOT / "measurements" / f"{table}.csv").is_file()


def test_the_h800_profiles_give_a_source_for_every_field():
    for kind, name in (("gpus", "h800_sxm"), ("clusters", "h800_2048")):
        raw, _ = read_profile(kind, name)
        parts = [raw, *(part for part in raw.values() if isinstance(part, dict))]
        for part in [p for p in parts if "sources" in p]:
            fields = set(part) - {"name", "architecture", "sources", "node", "nic", "fabric"}
            assert fields == set(part["sources"])


def test_the_h800_cluster_is_the_published_machine():
    cluster = load_cluster("h800_2048")
    assert cluster.gpus == 2048
    assert cluster.node.nic.bandwidth == pytest.approx(50e9)
    assert cluster.node.nic_bandwidth_per_gpu == pytest.approx(50e9)
    assert cluster.node.gpu.nvlink_bandwidth == pytest.approx(200e9)
    assert cluster.node.gpu.peak_compute["bfloat16"] == pytest.approx(989e12)
    assert cluster.gpu_price * 3600 == pytest.approx(2.0)


def test_an_override_replaces_one_value_before_validation():
    cluster = load_cluster("h800_2048", {"node.nic.bandwidth": "200 Gbit/s"})
    assert cluster.node.nic.bandwidth == pytest.approx(25e9)
    assert load_cluster("h800_2048").node.nic.bandwidth == pytest.approx(50e9)


def test_another_gpu_by_name_and_one_of_its_values_can_be_set_together():
    overrides = {"node.gpu.hbm_bandwidth": "4 TB/s", "node.gpu": "h200_sxm"}
    gpu = load_cluster("h800_2048", overrides).node.gpu
    assert (gpu.name, gpu.hbm_bandwidth) == ("h200_sxm", pytest.approx(4e12))


@pytest.mark.parametrize(
    ("overrides", "teraflops"),
    [
        ({}, 989),
        ({"sm_clock": "915 MHz"}, 494.5),
        ({"sms": 66}, 494.5),
        ({"sms": 66, "sm_clock": "915 MHz"}, 247.25),
        # Peaks that are stated for the new clock, or set themselves at the old one.
        ({"sm_clock": "915 MHz", "peak_clock": "915 MHz"}, 989),
        ({"sms": 144, "peak_sms": 144, "peak_compute.bfloat16": "1 PFLOP/s"}, 1000),
    ],
)
def test_peaks_follow_the_sms_and_the_clock(overrides, teraflops):
    assert load_gpu("h800_sxm", overrides).peak("bfloat16") == pytest.approx(teraflops * 1e12)
    of_cluster = {f"node.gpu.{path}": value for path, value in overrides.items()}
    gpu = load_cluster("h800_2048", of_cluster).node.gpu
    assert gpu.peak("bfloat16") == pytest.approx(teraflops * 1e12)
    assert gpu.peak_compute["fp8_e4m3"] == 1979e12


def test_a_resolved_cluster_says_at_what_its_peaks_are_stated():
    raw, where = read_profile("clusters", "h800_2048")
    plain = resolve_cluster(raw, {}, where=where)["node"]["gpu"]
    assert "peak_clock" not in plain
    slow = resolve_cluster(raw, {"node.gpu.sm_clock": "915 MHz"}, where=where)
    assert slow["node"]["gpu"]["peak_clock"] == "1830 MHz"
    again = to_profile(ClusterProfile, yaml.safe_load(yaml.safe_dump(slow)), where="again")
    assert again.node.gpu.clock_ratio == 0.5


def test_an_operand_type_without_a_peak_is_one_line():
    with pytest.raises(ValueError, match="GPU h800_sxm: peak_compute: no peak for 'int8'; known:"):
        load_gpu("h800_sxm").peak("int8")


def test_a_slowdown_that_is_set_leaves_what_measured_rows_hold():
    changed = {"overlap.gemm.value": 1.15, "overlap.gemm.high": 1.2}
    overlap = load_calibration("h800_sxm", changed).overlap
    assert (overlap.gemm.value, overlap.gemm.of_rows) == (1.15, 1.045)
    assert (overlap.attention.in_rows, overlap.attention.of_rows) == (None, 1.045)


def test_a_resolved_cluster_is_plain_text_that_validates_again():
    raw, where = read_profile("clusters", "h800_2048")
    resolved = resolve_cluster(raw, {"nodes": 2}, where=where)
    text = yaml.safe_dump(resolved)
    assert to_profile(ClusterProfile, yaml.safe_load(text), where="again").gpus == 16
    assert raw["nodes"] == 256


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"node.nic.bandwith": "1 GB/s"},
            r"node\.nic\.bandwith: unknown field; did you mean bandwidth\?$",
        ),
        ({"node.nic.bandwidth": 4}, r"node\.nic\.bandwidth: 4 has no unit.*400 Gbit/s"),
        ({"node.nic.bandwidth": "4"}, r"node\.nic\.bandwidth: '4' has no unit"),
        ({"node.nic.bandwidth": "4 Gb/s"}, r"bandwidth: .*unknown unit 'Gb/s'.*Gbit/s"),
        ({"node.nic.bandwidth": "4 GB"}, r"bandwidth: .*unknown unit 'GB'"),
        ({"node.nic.bandwidth": "-4 GB/s"}, r"bandwidth: '-4 GB/s'.*greater than 0"),
        ({"node.nic.bandwidth": "0 GB/s"}, r"bandwidth: '0 GB/s'.*greater than 0"),
        ({"node.nvlink_latency": "-1 us"}, r"nvlink_latency: '-1 us'.*0 or more"),
        ({"node.gpus": 0}, r"node\.gpus: 0 is not allowed"),
        ({"node.gpus": "8"}, r"node\.gpus: '8' is not allowed"),
        ({"nodes": True}, r"nodes: true is not allowed"),
        ({"node.gpus.x": 1}, r"node\.gpus\.x: 'node\.gpus' has no fields"),
        ({"rack.gpus": 1}, r"rack: unknown field; known: fabric, .*node"),
        ({"node.gpu.sms": 1.5}, r"node\.gpu\.sms: 1\.5 is not allowed"),
        ({"node.gpu.peak_compute": {}}, r"node\.gpu: peak_compute is empty"),
        ({"node.gpu.peak_compute.fp9": "1 TFLOP/s"}, r"peak_compute\.fp9.*fp8_e4m3"),
        ({"fabric.cross_leaf_latency": "1 us"}, r"fabric: cross_leaf_latency must be at least"),
        ({"fabric.sources.plans": "x"}, r"fabric: sources names the unknown field 'plans'"),
        ({"node.gpu": "b100"}, r"unknown GPU 'b100'; known: .*h100_sxm"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_field_and_what_is_allowed(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_cluster("h800_2048", overrides)
    assert "\n" not in str(caught.value)
    if "node.gpu" not in overrides:
        assert str(caught.value).startswith("clusters/h800_2048.yaml: ")


def test_a_missing_field_is_named():
    raw, _ = read_profile("gpus", "h800_sxm")
    del raw["hbm_bandwidth"]
    with pytest.raises(ValueError, match=r"^mine\.yaml: hbm_bandwidth: is missing$"):
        to_profile(GpuProfile, raw, where="mine.yaml")


def test_the_all_to_all_ratio_can_be_taken_out():
    calibration = load_calibration("h800_sxm")
    assert calibration.all_to_all.beside_compute.dispatch.value > 1
    without = calibration.without_all_to_all_slowdown()
    assert (
        without.all_to_all.beside_compute.dispatch.value
        == without.all_to_all.beside_compute.combine.value
        == 1.0
    )
    assert without.overlap.gemm == calibration.overlap.gemm
    assert isinstance(without, CalibrationProfile)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [a", r"line \d+: not valid YAML"),
        ("name: a\nname: b\n", r"line 2: not valid YAML: field 'name' is given twice"),
        ("- 1\n", r"expected fields with values, found list"),
        ("", r"expected fields with values, found NoneType"),
        ("a: !!python/object:os.system x", r"not valid YAML"),
        ("a: \x00", r"not valid YAML"),
        ("name: x\n? [1, 2]\n: y\n", r"line 2: not valid YAML: a list cannot name a field"),
        ("? {a: b}\n: y\n", r"line 1: not valid YAML: a mapping cannot name a field"),
        (
            "name: 2024-13-99\n",
            r"broken.yaml: architecture, sms, sm_clock, .*, power: are missing$",
        ),
        ("name: {<<: *nowhere}\n", r"line 1: not valid YAML: found undefined alias"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_gpu(str(path))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_merge_key_brings_fields_that_may_be_given_again(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: 2024-13-99\n")
    read = read_yaml(path, where="merged")
    assert read == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": "2024-13-99"}


@pytest.mark.parametrize("deep", [3, 9, 30])
def test_aliases_that_would_make_millions_of_values_are_refused(deep, tmp_path):
    """Ten times as many at each level: 1,111 values at the third, 10 ** 9 at the ninth."""
    path = tmp_path / "laughs.yaml"
    levels = [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, deep)]
    path.write_text("a:\n" + "\n".join(["- &a0 [" + "x, " * 10 + "]", *levels]) + "\n")
    if deep == 3:
        assert len(read_yaml(path, where="it")["a"][-1][0]) == 10
        return
    with pytest.raises(ValueError, match=r"^it: not valid YAML: over 1048576 values, aliases w"):
        read_yaml(path, where="it")


def test_a_value_that_holds_itself_is_refused(tmp_path):
    path = tmp_path / "loop.yaml"
    path.write_text("a: &a [*a]\n")
    with pytest.raises(ValueError, match=r"^it: not valid YAML: over 1048576 values"):
        read_yaml(path, where="it")


def test_a_field_that_is_there_to_be_merged_is_no_field_of_the_file(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text(
        "one: &one {x: 1}\ntwo: &two {y: 2}\nspare: {z: 3}\nkept: &kept {w: 4}\n"
        "used: {deep: [{<<: *one}, {<<: [*two, *kept]}]}\n"
    )
    read = read_yaml(path, where="merged", known=("kept", "used"))
    assert read == {
        "spare": {"z": 3},
        "kept": {"w": 4},
        "used": {"deep": [{"x": 1}, {"y": 2, "w": 4}]},
    }
    assert set(read_yaml(path, where="merged")) == {"one", "two", "spare", "kept", "used"}


def test_fits_of_transfers_in_an_earlier_calibration_are_passed_over(tmp_path):
    raw, _ = read_profile("calibrations", "h200_sxm_reference")
    shipped = len(raw["fits"])
    raw["fits"].append({"estimator": "link", "link": {"share": 0.8}, "kind": "send"})
    path = tmp_path / "earlier.yaml"
    path.write_text(yaml.safe_dump(raw))
    assert len(load_calibration(str(path)).fits) == shipped


@pytest.mark.parametrize(
    ("overrides", "planes"),
    [
        ({"fabric.topology": "multi_rail_fat_tree"}, 1),
        ({"fabric.topology": "multi_plane_fat_tree"}, 8),
        ({"fabric.topology": "multi_plane_fat_tree", "fabric.planes": 4}, 4),
        ({"fabric.planes": 2}, 2),
    ],
)
def test_another_topology_has_the_planes_that_it_can_have(overrides, planes):
    former = (
        "h800_2048" if overrides.get("fabric.topology") != "multi_plane_fat_tree" else "ft2_2048"
    )
    assert load_cluster(former, overrides).fabric.planes == planes
