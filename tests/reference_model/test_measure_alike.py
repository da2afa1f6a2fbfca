"""A loop of two kernels becomes rows by stretch of time, with what the GPU reported meanwhile."""

from reference_model.config import load_model_config
from reference_model.measure_alike import Turn, loop_operators, stretches

OPERATORS = loop_operators(load_model_config("debug"), tokens=64)


def rows(turns, samples):
    return stretches(
        OPERATORS, turns, samples,
        gpu=3, busy="all", sms=132, source="a test", duration_s=10.0, stretch_s=5.0,
    )  # fmt: skip


def conditions(row):
    return dict(pair.split("=") for pair in row.conditions.split(";"))


def test_the_loop_is_a_gemm_of_the_shared_experts_and_attention():
    product, attention = OPERATORS
    assert dict(product.sizes) == {"m": 64, "n": 2 * 128, "k": 128}
    assert (product.kind, product.dtype) == ("gemm", "fp8_e4m3")
    assert attention.kind == "attention_forward"
    assert attention["query_length"] == attention["kv_length"] == 64


def test_a_row_is_the_median_of_the_turns_that_began_in_its_stretch():
    turns = [
        Turn(0, 0.0, 1e-4), Turn(1, 1.0, 5e-4), Turn(0, 2.0, 3e-4), Turn(0, 4.9, 2e-4),
        Turn(0, 5.0, 9e-4),
    ]  # fmt: skip
    found = rows(turns, [])
    assert [(row.kind, row.seconds) for row in found] == [
        ("gemm", 2e-4), ("attention_forward", 5e-4), ("gemm", 9e-4),
    ]  # fmt: skip
    assert [(conditions(r)["from_s"], conditions(r)["to_s"]) for r in found] == [
        ("0", "5"), ("0", "5"), ("5", "10"),
    ]  # fmt: skip
    assert conditions(found[0])["repeats"] == "3"
    assert "clock_hz" not in conditions(found[0])


def test_what_the_gpu_reported_belongs_to_the_stretch_in_which_it_was_sampled():
    """Four samples over 10 s stand for 1.25, 3.75, 6.25 and 8.75 s."""
    samples = [(1980.0, 600.0, 40.0), (1900.0, 640.0, 44.0), (1500.0, 690.0, 60.0),
               (1400.0, 700.0, 62.0)]  # fmt: skip
    first, second = rows([Turn(0, 0.0, 1e-4), Turn(0, 6.0, 1e-4)], samples)
    asked = ("clock_hz", "power_w", "temperature_c")
    assert [conditions(first)[name] for name in asked] == ["1.94e+09", "620", "42"]
    assert [conditions(second)[name] for name in asked] == ["1.45e+09", "695", "61"]
