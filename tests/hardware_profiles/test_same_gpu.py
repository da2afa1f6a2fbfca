"""Which GPU a file describes, whatever it calls it."""

from itertools import combinations

import pytest

from hardware_profiles.same_gpu import same_gpu, shipped_name
from hardware_profiles.schema import known_gpus, load_gpu

H800 = load_gpu("h800_sxm")


@pytest.mark.parametrize(
    ("changed", "is_one"),
    [
        ({}, True),
        # No kernel's time rests on these.
        ({"hbm_capacity": "96 GiB", "nvlink_bandwidth": "450 GB/s", "power": "500 W"}, True),
        ({"hbm_bandwidth": "4 TB/s"}, False),
        ({"sms": 114}, False),
        ({"name": "mine"}, True),
        ({"name": "mine", "hbm_capacity": "96 GiB"}, True),
        # An H100 but for its name.
        ({"name": "mine", "nvlink_bandwidth": "450 GB/s"}, False),
    ],
)
def test_a_file_means_a_gpu_where_its_kernels_take_as_long(changed, is_one):
    assert same_gpu(H800, load_gpu("h800_sxm", changed)) is is_one
    assert same_gpu(load_gpu("h800_sxm", changed), H800) is is_one


def test_no_two_shipped_files_mean_one_gpu():
    assert not any(
        same_gpu(load_gpu(one), load_gpu(other)) for one, other in combinations(known_gpus(), 2)
    )


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"name": "mine"}, "h800_sxm"),
        ({"name": "mine", "nvlink_bandwidth": "450 GB/s"}, "h100_sxm"),
        ({"name": "mine", "sms": 114}, "mine"),
        ({"sms": 114}, "h800_sxm"),
    ],
)
def test_shipped_tables_know_a_gpu_by_what_its_file_says(changed, name):
    assert shipped_name(load_gpu("h800_sxm", changed)) == name
