"""Files of profiles are read by name or path, and older ones as those of today."""

import pytest
import yaml

from hardware_profiles.profile_files import achieved_rates, read_profile
from hardware_profiles.schema import load_calibration, load_gpu


def test_a_path_that_is_not_there_is_one_line():
    with pytest.raises(ValueError, match=r"^gone/gpu\.yaml: cannot be read: No such file"):
        load_gpu("gone/gpu.yaml")


def older_calibration(tmp_path, **changes):
    """A user's file from before tiles and six other inputs were fields."""
    raw = read_profile("calibrations", "h800_sxm")[0]
    for field in ("tiles", "other_gpu", "common_share", "fits"):
        del raw[field]
    del raw["sources"]["common_share"]
    for field in ("sms_per_channel", "limited_by_nvlink", "nvlink_latency", "network_latency"):
        del raw["all_to_all"][field]
        del raw["all_to_all"]["sources"][field]
    path = tmp_path / "older.yaml"
    path.write_text(yaml.safe_dump(raw | {"name": "older"} | changes), encoding="utf-8")
    return path


def test_an_older_calibration_takes_later_fields_from_the_shipped_one_of_its_gpu(tmp_path):
    older = load_calibration(str(older_calibration(tmp_path)), {"tiles.overhead": 16})
    shipped = load_calibration("h800_sxm")
    assert older.tiles.overhead == 16
    assert older.tiles.narrowest == shipped.tiles.narrowest
    assert older.common_share == shipped.common_share
    assert older.all_to_all.sms_per_channel == shipped.all_to_all.sms_per_channel
    for text in (
        older.other_gpu.source,
        older.sources["common_share"],
        older.tiles.sources["narrowest"],
        older.all_to_all.sources["limited_by_nvlink"],
    ):
        assert text.startswith("as in the shipped calibration h800_sxm, because this file does not")


def test_earlier_names_of_a_calibration_are_read_with_a_note(tmp_path):
    raw, _ = read_profile("calibrations", "b200_sxm_reference")
    earlier = dict(raw) | {"name": "earlier"}
    earlier["transfer_from"] = earlier.pop("restated_from")
    earlier["carried_over"] = earlier.pop("restatement")
    path = tmp_path / "earlier.yaml"
    path.write_text(yaml.safe_dump(earlier), encoding="utf-8")
    note = (
        r"earlier\.yaml: transfer_from is called restated_from now, "
        r"carried_over is called restatement now"
    )
    with pytest.warns(FutureWarning, match=note):
        read = load_calibration(str(path))
    shipped = load_calibration("b200_sxm_reference")
    assert read.restated_from == shipped.restated_from == ("h200_sxm_reference",)
    assert read.restatement == shipped.restatement


def test_a_field_that_no_shipped_calibration_can_give_is_named_with_a_file_that_has_it(tmp_path):
    path = older_calibration(tmp_path, gpu="mine")
    with pytest.raises(
        ValueError,
        match=r"are missing; hardware_profiles/calibrations/h800_sxm.yaml shows",
    ):
        load_calibration(str(path))


def test_a_transport_may_name_one_that_states_what_its_nics_achieve_and_no_other(tmp_path):
    stated, named = tmp_path / "stated.yaml", tmp_path / "named.yaml"
    stated.write_text("achieved: {nic: {value: 0.5}, nvlink: {value: 0.7}}")
    named.write_text(f"achieved: {{nic: {stated}, nvlink: {{value: 0.6}}}}")
    assert achieved_rates(str(named)) == {"nic": {"value": 0.5}, "nvlink": {"value": 0.6}}
    named.write_text(f"achieved: {{nic: {named}, nvlink: {{value: 0.6}}}}")
    with pytest.raises(
        ValueError, match=r"named\.yaml: achieved\.nic: .* names .* itself; allowed"
    ):
        achieved_rates(str(named))
    named.write_text("name: mine")
    with pytest.raises(ValueError, match=r"achieved: None; allowed: nic and nvlink, each a share"):
        achieved_rates(str(named))
