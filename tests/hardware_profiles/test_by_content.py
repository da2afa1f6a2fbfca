"""What is worked out once is known by what it was worked out from."""

from hardware_profiles.by_content import object_key, profile_key, rows_key
from hardware_profiles.schema import load_calibration, load_gpu


def test_two_profiles_that_say_the_same_have_one_key():
    one, two = load_gpu("h800_sxm"), load_gpu("h800_sxm").model_copy()
    assert one is not two
    assert profile_key(one) == profile_key(two)
    assert hash(profile_key(one)) == hash(profile_key(two))


def test_a_profile_that_says_anything_else_has_another_key():
    gpu = load_gpu("h800_sxm")
    assert profile_key(gpu) != profile_key(gpu.model_copy(update={"sms": 131}))
    assert profile_key(gpu) != profile_key(load_calibration("h800_sxm"))


def test_fields_that_do_not_count_leave_the_key_as_it_is():
    gpu = load_gpu("h800_sxm")
    other = gpu.model_copy(update={"power": 500.0})
    assert profile_key(gpu, without={"power": True}) == profile_key(other, without={"power": True})


def test_objects_are_known_by_which_they_are():
    rows = [("a", 1), ("a", int("1"))]
    assert object_key(rows) == object_key(rows) != object_key(list(rows))
    assert rows_key(rows) == rows_key(tuple(rows)) != rows_key(rows[::-1])
    assert rows_key(rows).value == tuple(rows)
