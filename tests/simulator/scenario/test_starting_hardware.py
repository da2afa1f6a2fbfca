"""Files of a GPU and of a cluster of one's own: they load as what their numbers say."""

from pathlib import Path

import pytest
import yaml

from hardware_profiles.schema import load_cluster, load_gpu
from simulator.scenario.starting_hardware import (
    gpu_named,
    nearest_calibration,
    starting_cluster,
    starting_gpu,
)

TEN = {
    "sms": 160, "clock": "2 GHz", "bf16": "2 PFLOP/s", "fp8": "4 PFLOP/s", "memory": "144 GB",
    "hbm": "6 TB/s", "l2": "64 MiB", "nvlink": "900 GB/s", "pcie": "64 GB/s", "power": "1 kW",
}  # fmt: skip


def _gpu(folder: Path, given: dict, **other) -> Path:
    path = folder / "mine.yaml"
    named = {"architecture": None, "like": None} | other
    path.write_text(starting_gpu("mine", given, **named))
    return path


def _cluster(folder: Path, **asked) -> Path:
    path = folder / "machine.yaml"
    path.write_text(starting_cluster(path, **({"given": {}, "like": None} | asked))[0])
    return path


def test_a_gpu_that_does_not_exist_is_ten_numbers(tmp_path):
    gpu = load_gpu(str(_gpu(tmp_path, TEN)))

    assert (gpu.sms, gpu.sm_clock, gpu.hbm_capacity, gpu.hbm_bandwidth) == (160, 2e9, 144e9, 6e12)
    assert (gpu.nvlink_bandwidth, gpu.pcie_bandwidth, gpu.power) == (9e11, 6.4e10, 1000.0)
    assert (gpu.peak("bfloat16"), gpu.peak("fp8_e4m3"), gpu.l2_capacity) == (2e15, 4e15, 2**26)
    # 160 SMs x 2 GHz x 128 multiply-adds of two FLOP: 81.92 TFLOP/s, to three digits.
    assert gpu.peak("float32") == 81.9e12
    # Of the shipped GPUs the B200 is nearest in SMs x clock, HBM and highest peak.
    assert gpu.architecture == "blackwell"
    assert gpu.sources["hbm_bandwidth"] == "given to dsv3sim init"


def test_a_gpu_like_a_shipped_one_changes_what_is_given_and_keeps_the_rest(tmp_path):
    gpu, h100 = (
        load_gpu(str(_gpu(tmp_path, {"hbm": "4.8 TB/s"}, like="h100"))),
        load_gpu("h100_sxm"),
    )

    assert gpu.model_copy(update={"sources": h100.sources, "name": "h100_sxm"}) == h100.model_copy(
        update={"hbm_bandwidth": 4.8e12}
    )
    assert gpu.sources["power"] == f"as h100_sxm: {h100.sources['power']}"


def test_peaks_of_a_shipped_gpu_go_with_the_sms_and_the_clock_of_the_other(tmp_path):
    given = {"sms": 66, "clock": "2013 MHz", "fp8": "3 PFLOP/s"}
    gpu = load_gpu(str(_gpu(tmp_path, given, like="h200")))
    # Half of 132 SMs at 1.1 times 1,830 MHz: 0.55 of 989, 494 and 67 TFLOP/s, to four digits.
    assert [gpu.peak(dtype) for dtype in ("bfloat16", "tfloat32", "float32")] == pytest.approx(
        [544e12, 271.7e12, 36.85e12], rel=1e-12
    )
    assert gpu.peak("fp8_e4m3") == 3e15
    by_set = load_gpu("h200_sxm", {"sms": 66, "sm_clock": "2013 MHz"})
    assert by_set.peak("bfloat16") == pytest.approx(543.95e12, rel=1e-12)
    assert gpu.sources["peak_compute"].startswith(
        "fp8: given to dsv3sim init; others as h200_sxm, by SMs and clock: "
    )


def test_a_gpu_of_too_few_numbers_is_refused():
    with pytest.raises(
        ValueError, match=r"--power not given; allowed: all ten .*--like .* b200_sxm"
    ):
        starting_gpu("mine", {k: v for k, v in TEN.items() if k != "power"}, architecture=None,
                     like=None)  # fmt: skip


@pytest.mark.parametrize(
    ("gpu", "nearest"),
    [
        # The H100's SMs and HBM are the H800's, whose kernels are a training framework's.
        ("h100_sxm", ("h800_sxm", "h100_sxm", "h100_sxm")),
        ("h800_sxm", ("h800_sxm", "h800_sxm", "h800_decode")),
        # On Blackwell nobody's training kernels are timed: the reference model's.
        ("gb200", ("gb200_reference", "gb200", "gb200")),
    ],
)
def test_the_nearest_calibration_has_kernels_of_the_job(gpu, nearest):
    profile = load_gpu(gpu)

    found = tuple(nearest_calibration(profile, job) for job in ("training", "prefill", "decode"))
    assert found == nearest


def test_a_short_name_means_the_shipped_gpu():
    assert [gpu_named(name) for name in ("h100", "b200", "gb200", "./a.yaml", "a100")] == [
        "h100_sxm", "b200_sxm", "gb200", "./a.yaml", "a100",
    ]  # fmt: skip


def test_a_cluster_has_the_nodes_of_its_gpus_and_the_rest_of_the_nearest_one(tmp_path):
    path = _cluster(
        tmp_path, gpu="h100", gpus=512, given={"node.nic.bandwidth": "800 Gbit/s", "node.gpus": 4}
    )
    cluster, shipped = load_cluster(str(path)), load_cluster("h100_512")

    assert (cluster.nodes, cluster.node.gpus, cluster.node.nics) == (128, 4, 4)
    assert (cluster.node.nic.bandwidth, cluster.node.nic.name) == (100e9, "nic")
    assert cluster.node.nic.sources == {"bandwidth": "given to dsv3sim init"}
    assert cluster.fabric.model_copy(update={"sources": {}}) == shipped.fabric.model_copy(
        update={"sources": {}}
    )
    assert cluster.sources["gpu_price"] == f"as h100_512: {shipped.sources['gpu_price']}"


def test_a_cluster_names_a_gpu_file_from_its_own_folder(tmp_path, monkeypatch):
    gpu = _gpu(tmp_path, TEN)
    path = _cluster(tmp_path, gpu=str(gpu), gpus=64)

    assert yaml.safe_load(path.read_text())["node"]["gpu"] == "./mine.yaml"
    monkeypatch.chdir("/")
    assert load_cluster(str(path)).node.gpu == load_gpu(str(gpu))


def test_an_nvlink_domain_is_given_in_gpus(tmp_path):
    path = _cluster(tmp_path, gpu="gb200", gpus=1152, given={"domain": 144})

    assert load_cluster(str(path)).fabric.nvlink_domain_nodes == 36


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus": 100}, "--gpus 100 does not fill nodes of 8; allowed: a multiple of 8"),
        ({"gpus": 64, "given": {"domain": 12}}, "--nvlink-domain 12: allowed: whole nodes of 8"),
        ({"gpus": 64, "given": {"node.nics": 3}}, "3 NICs for 8 GPUs of a node"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(tmp_path, asked, message):
    with pytest.raises(ValueError, match=message):
        _cluster(tmp_path, gpu="h100", **asked)
