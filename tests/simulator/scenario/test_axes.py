"""What varies: from the command line and in a scenario file."""

import pytest

from simulator.scenario.axes import Axis, file_axes, points

NIC = "cluster.node.nic.bandwidth"


def test_an_axis_reads_values_as_yaml():
    assert Axis.parse("training.schedule=1f1b,dualpipe").values == (("1f1b",), ("dualpipe",))
    assert Axis.parse(f"{NIC}=200 Gbit/s, 400 Gbit/s").values == (("200 Gbit/s",), ("400 Gbit/s",))
    assert Axis.parse("x=1,2.5,true").values == ((1,), (2.5,), (True,))


def test_an_axis_varies_several_paths_in_step():
    axis = Axis.parse("cluster+calibration=[h800_2048, h800_sxm],[h100_2048, h100_sxm]")
    assert axis.paths == ("cluster", "calibration")
    assert axis.values == (("h800_2048", "h800_sxm"), ("h100_2048", "h100_sxm"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "allowed: path=value"),
        ("=1,2", "allowed: path=value"),
        ("seed=", "no value"),
        ("seed=[1", "not valid YAML"),
        ("a+b=1,2", "allowed: a list of 2"),
        ("a+b=[1, 2, 3]", "allowed: a list of 2"),
    ],
)
def test_a_bad_axis_is_named_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        Axis.parse(text)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_points_are_all_combinations_with_the_last_axis_fastest():
    axes = [Axis.of("a", [1, 2]), Axis.of("b+c", [[3, 4], [5, 6]])]
    assert list(points(axes)) == [
        {"a": 1, "b": 3, "c": 4},
        {"a": 1, "b": 5, "c": 6},
        {"a": 2, "b": 3, "c": 4},
        {"a": 2, "b": 5, "c": 6},
    ]
    assert list(points([])) == [{}]


def test_a_file_nests_what_it_varies_as_its_own_fields():
    fabric = {"topology+planes": [["x", 8], ["y", 1]], "routing": []}
    vary = {"cluster": {"fabric": fabric}, "operation": {"gpus": [8], "group": None}}
    assert file_axes(vary, where="f") == [
        Axis(("cluster.fabric.topology", "cluster.fabric.planes"), (("x", 8), ("y", 1))),
        Axis(("operation.gpus",), ((8,),)),
    ]


@pytest.mark.parametrize(
    ("fabric", "message"),
    [
        (
            {"routing": "ecmp"},
            r"^f: vary\.fabric\.routing: 'ecmp' is not allowed: a list of ",
        ),
        (
            {"topology+planes": ["x"]},
            r"^f: vary\.fabric\.topology\+planes: 'x' for 2 paths; ",
        ),
    ],
)
def test_a_file_that_varies_no_list_is_named_in_one_line(fabric, message):
    with pytest.raises(ValueError, match=message):
        file_axes({"fabric": fabric}, where="f")
