"""One job on several machines, side by side."""

from rich.console import Console

from reports.machines import machines_table

H100 = {
    "cluster": "a", "gpu": "h100_sxm", "gpus": 64, "calibration": "h100_sxm", "step_time_s": 0.05,
    "tokens_per_second_per_gpu": 2000.0, "usd_per_gpu_second": 2 / 3600,
    "usd_per_million_tokens": 0.2778, "watts_per_gpu": 600.0, "joules_per_token": 0.3,
    "power_measured_on": ["h100_sxm"],
}  # fmt: skip


def test_ratios_are_to_the_first_machine_and_reasons_stand_below():
    other = H100 | {
        "cluster": "b", "gpu": "gb200", "step_time_s": 0.025, "power_measured_on": ["h100_sxm"],
    }  # fmt: skip
    table = machines_table(
        "it", [H100, other, {"cluster": "c", "gpu": "h20_sxm", "reason": "no room"}]
    )
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    text = console.export_text()

    assert "│ step time                 │    50 ms │ 25 ms (0.50) │" in text
    words = " ".join(text.split())
    assert "c: no room" in words
    assert "power of gb200: assumed the share of the board's limit that h100_sxm draw" in words
