import json
from pathlib import Path
from typing import Any

import pytest

from simulator.workload.profile.kernel_mapping import (
    best_mapping,
    evaluate,
    gpu_of_recording,
    known_mappings,
    load_mapping,
    map_kernels,
)
from simulator.workload.profile.kineto import read_kineto
from simulator.workload.profile.replay_graph import Role


def test_kernels_map_by_name_annotation_order_grid_and_recorded_shapes(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    profile.span("layer", 0, 100)
    profile.launch("cast", called=1, at=10, us=5, grid=4096)
    profile.launch("gemm", called=10, at=20, us=5, grid=32)
    profile.launch("cast", called=20, at=30, us=5, grid=77)
    profile.span("aten::mm", 118, 130, category="cpu_op", dims=[[64, 7168], [7168, 256]])
    profile.launch("matmul", called=120, at=130, us=5)
    profile.launch("unheard of", called=140, at=150, us=5)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    mapped = map_kernels(trace, load_mapping(made_up_mapping))
    sizes = [None if m.operator is None else dict(m.operator.sizes) for m in mapped]
    assert sizes == [
        {"rows": 4096, "columns": 7168},
        {"m": 4096, "n": 4096, "k": 7168},
        {"rows": 4096, "columns": 7168},
        {"m": 64, "n": 256, "k": 7168},
        None,
    ]
    assert mapped[4].label == "unheard of"
    assert mapped[4].reason == "no rule of the mapping matches its name"


def test_a_count_that_differs_from_the_order_leaves_all_of_them_unmapped(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    profile.span("layer", 0, 100)
    profile.launch("cast", called=1, at=10, us=5)
    mapped = map_kernels(
        read_kineto(profile.write(tmp_path / "trace.json")), load_mapping(made_up_mapping)
    )
    assert mapped[0].operator is None
    assert mapped[0].reason == "1 kernels match 'cast' in layer (0), the mapping lists 2"


def test_shapes_that_were_not_recorded_leave_the_kernel_unmapped(
    profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    profile.span("aten::mm", 0, 30, category="cpu_op")
    profile.launch("matmul", called=1, at=10, us=5)
    mapped = map_kernels(
        read_kineto(profile.write(tmp_path / "trace.json")), load_mapping(made_up_mapping)
    )
    assert mapped[0].reason == "size 'input_0_0': the trace does not give 'input_0_0'"


def test_roles_come_from_patterns(profile: Any, made_up_mapping: str, tmp_path: Path) -> None:
    for number, name in enumerate(("all_to_all", "barrier_counts", "gemm")):
        profile.launch(name, called=10 * number, at=10 * number + 8, us=1)
    mapped = map_kernels(
        read_kineto(profile.write(tmp_path / "trace.json")), load_mapping(made_up_mapping)
    )
    assert [m.role for m in mapped] == [Role.COMMUNICATION, Role.RANK_WAIT, Role.COMPUTE]
    assert [m.polled for m in mapped] == [False, True, False]


def test_another_device_is_an_error_that_names_both(
    other_device_profile: Any, profile: Any, made_up_mapping: str, tmp_path: Path
) -> None:
    mapping = load_mapping(made_up_mapping)
    other_device_profile.launch("gemm", called=0, at=10, us=1)
    other = read_kineto(other_device_profile.write(tmp_path / "other.json"))
    with pytest.raises(
        ValueError, match="'NVIDIA A100-SXM4-80GB' is not in mapping made_up; known"
    ):
        gpu_of_recording(other, mapping, None)
    profile.launch("gemm", called=0, at=10, us=1)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    assert gpu_of_recording(trace, mapping, None) == "h800_sxm"
    with pytest.raises(ValueError, match=r"recorded on NVIDIA H800 \(h800_sxm\), not on h200_sxm"):
        gpu_of_recording(trace, mapping, "h200_sxm")
    profile.device = None
    silent = read_kineto(profile.write(tmp_path / "silent.json"))
    with pytest.raises(ValueError, match="does not say its device"):
        gpu_of_recording(silent, mapping, None)
    assert gpu_of_recording(silent, mapping, "h800_sxm") == "h800_sxm"


def test_sizes_are_arithmetic_and_nothing_else() -> None:
    assert evaluate("grid_x * 16 - 2 * (a // 3)", {"grid_x": 4, "a": 7}) == 60
    for wrong in ("__import__('os')", "a ** b", "1.5", "a if b else c", "", "f(a)"):
        with pytest.raises(ValueError, match="size"):
            evaluate(wrong, {"a": 1, "b": 2, "c": 3})
    with pytest.raises(ValueError, match="divides by 0"):
        evaluate("a // 0", {"a": 1})
    with pytest.raises(ValueError, match="less than 0"):
        evaluate("a - 5", {"a": 1})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: gemm", "kind: gem", "'gem' is no kernel family"),
        ("m: grid_x * 128, ", "", "sizes of gemm are m, n, k"),
        ("match: gemm", "match: '(gemm'", "not a regular expression"),
        ("operator: product", "operator: produce", "'produce' is in none of the file's tables"),
        ("operator: product", "wrong: product", "unknown field"),
        ("value: 2 us", "value: 2", "has no unit"),
    ],
)
def test_a_wrong_mapping_names_file_and_field(
    made_up_mapping: str, tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(Path(made_up_mapping).read_text().replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_mapping(str(path))
    assert "wrong.yaml" in str(error.value)


def test_every_shipped_mapping_loads_and_an_unknown_name_lists_them() -> None:
    assert known_mappings() == (
        "deepseek_training_profile",
        "pytorch_profile",
        "reference_model_profile",
    )
    for name in known_mappings():
        assert load_mapping(name).name == name
    with pytest.raises(ValueError, match="known: deepseek_training_profile, pytorch_profile"):
        load_mapping("nsys")


LAYER = Path(__file__).resolve().parents[3] / "reference_model/data/moe_layer_h200.json"


def test_a_profile_that_names_its_operators_needs_no_rules() -> None:
    trace = read_kineto(LAYER)
    mapped = map_kernels(trace, load_mapping("reference_model_profile"))
    assert {place.operator.kind for place in mapped if place.operator} >= {
        "gemm",
        "rmsnorm_residual",
    }
    assert {place.operator.name for place in mapped if place.operator} <= {
        kernel.operator for kernel in trace.kernels
    }
    for kernel, place in zip(trace.kernels, mapped, strict=True):
        assert place.operator is None or place.operator.name == kernel.operator
    left = {place.reason for place in mapped if place.operator is None}
    assert len(left) == 2
    assert all("stand-in for a transfer" in reason for reason in left)


def described(name: str, at: float, rows: int = 64) -> dict[str, Any]:
    sizes = {"rows": rows, "columns": 7168}
    args = {"operator": name, "kind": "quantize", "dtype": "bfloat16", "out_dtype": "fp8_e4m3"}
    event = {"ph": "X", "cat": "cpu_op", "name": f"dsv3::{name}", "tid": 1, "ts": at, "dur": 1}
    return {**event, "args": {**args, "sizes": sizes}}


def named(name: str, at: float) -> dict[str, Any]:
    args = {"stream": 7, "grid": [1, 1, 1], "block": [1, 1, 1], "operator": name}
    return {"ph": "X", "cat": "kernel", "name": "k", "tid": 7, "ts": at, "dur": 1, "args": args}


@pytest.mark.parametrize(
    ("rows", "kernels", "operators"),
    [
        ((64, 64), 4, 2),  # equal operators share their kernels alike
        ((64, 64), 3, 0),  # three kernels are no two launches
        ((64, 128), 4, 0),  # unequal ones might launch any number each
    ],
)
def test_operators_of_one_name_in_a_row_share_kernels_only_if_they_are_equal(
    tmp_path: Path, rows: tuple[int, ...], kernels: int, operators: int
) -> None:
    events = [described("cast", number, size) for number, size in enumerate(rows)]
    events += [named("cast", 100 + 2 * number) for number in range(kernels)]
    events += [named("lost", 200), named("", 202)]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(events), encoding="utf-8")
    mapped = map_kernels(read_kineto(path), load_mapping("reference_model_profile"))
    assert len({place.launch for place in mapped if place.operator}) == operators
    assert mapped[-2].reason == "the profile describes no further operator of this name"
    assert mapped[-1].reason == "the profile names no operator for it"


def test_the_best_mapping_knows_the_device(profile: Any, tmp_path: Path) -> None:
    profile.device = "NVIDIA H200"
    profile.launch("strange", called=0, at=10, us=60)
    mapping, mapped = best_mapping(read_kineto(profile.write(tmp_path / "trace.json")))
    assert "NVIDIA H200" in mapping.devices
    assert mapped[0].operator is None
