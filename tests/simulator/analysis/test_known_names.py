"""Names that may be used, each with a line on it."""

from simulator.analysis.known_names import NAMES


def test_every_list_has_its_names_and_a_line_on_each():
    first = {what: next(iter(names().items())) for what, names in NAMES.items()}
    assert first == {
        "scenarios": (
            "all_to_all_2048",
            "One all-to-all over 2,048 GPUs, 114,688 bytes a pair, one 50 GB/s link each",
        ),
        "models": (
            "debug",
            first["models"][1],
        ),
        "gpus": ("b200_sxm", "148 SMs, 167.6 GiB at 7.7 TB/s, NVLink 900 GB/s"),
        "clusters": ("b200_256", "32 nodes x 8 b200_sxm"),
        "calibrations": first["calibrations"],
        "schedules": ("gpipe", first["schedules"][1]),
    }
    assert all(line for names in NAMES.values() for line in names().values())
