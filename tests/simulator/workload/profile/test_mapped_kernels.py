"""Which operator each kernel of a profile is."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from simulator.workload.profile.kernel_mapping import load_mapping
from simulator.workload.profile.kineto import read_kineto
from simulator.workload.profile.mapped_kernels import (
    MappedKernel,
    UnmappedKernel,
    best_mapping,
    gpu_of_recording,
    map_kernels,
    short_name,
    unmapped_kernels,
)
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
    assert mapped[4].reason == "no rule of the mapping covers it"


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
        ValueError,
        match=r"recorded on 'NVIDIA A100-SXM4-80GB', which is not shipped; .*--recorded-gpu",
    ):
        gpu_of_recording(other, mapping, None)
    profile.launch("gemm", called=0, at=10, us=1)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    assert gpu_of_recording(trace, mapping, None) == "h800_sxm"
    with pytest.raises(ValueError, match=r"recorded on NVIDIA H800 \(h800_sxm\), not on h200_sxm"):
        gpu_of_recording(trace, mapping, "h200_sxm")
    profile.device = None
    silent = read_kineto(profile.write(tmp_path / "silent.json"))
    with pytest.raises(ValueError, match=r"names no device; .*--recorded-gpu"):
        gpu_of_recording(silent, mapping, None)
    assert gpu_of_recording(silent, mapping, "h800_sxm") == "h800_sxm"


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
    assert left == {
        "one GPU's stand-in for a transfer, a copy of its own tokens",
        "one GPU's stand-in for a transfer, a sum of its own rows",
    }


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
    assert mapped[-1].reason == "no rule of the mapping covers it"


def test_the_mapping_of_pytorch_programs_is_taken_where_none_names_more(
    profile: Any, tmp_path: Path
) -> None:
    profile.launch("strange", called=0, at=10, us=60)
    mapping, mapped = best_mapping(read_kineto(profile.write(tmp_path / "trace.json")))
    assert mapping.name == "pytorch_profile"
    assert mapped[0].operator is None


def mapped_by_host(
    profile: Any, path: Path, host: str, dims: list[Any], types: list[str], *kernels: str
) -> tuple[MappedKernel, ...]:
    """What kernels are that one call of a host operator launches, with a grid of 1,000 blocks."""
    profile.span(host, 0, 50, category="cpu_op", dims=dims, types=types)
    for number, name in enumerate(kernels):
        profile.launch(name, called=1 + 5 * number, at=60 + 20 * number, us=9, cost=1)
    trace = read_kineto(profile.write(path / "trace.json"))
    return map_kernels(trace, load_mapping("pytorch_profile"))


BF16, FP32, INT64, FP8 = "c10::BFloat16", "float", "long int", "c10::Float8_e4m3fn"
CHUNK = 65536
FOREACH = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::Tensor"
DEEP_GEMM = "void deep_gemm::sm90_fp8_gemm_1d2d_impl<(cute::UMMA::Major)0, 0u, 4096u, 7168u, "


@pytest.mark.parametrize(
    ("host", "dims", "types", "kernel", "kind", "sizes"),
    [
        (
            "aten::mm", [[64, 512], [512, 256]], [BF16, BF16],
            "nvjet_sm90_tst_64x8_64x16_1x2_h_bz_TNT", "gemm", {"m": 64, "n": 256, "k": 512},
        ),
        (
            "aten::addmm", [[256], [64, 512], [512, 256]], [BF16, BF16, BF16],
            "cutlass_80_tensorop_bf16_s16816gemm", "gemm", {"m": 64, "n": 256, "k": 512},
        ),
        (
            "aten::bmm", [[8, 64, 512], [8, 512, 256]], [BF16, BF16],
            "sm90_xmma_gemm_bf16bf16", "batched_gemm", {"batch": 8, "m": 64, "n": 256, "k": 512},
        ),
        (
            "aten::_scaled_mm", [[64, 512], [512, 256], [], []], [FP8, FP8, FP32, FP32],
            "nvjet_qqtst", "gemm", {"m": 64, "n": 256, "k": 512},
        ),
        (
            "aten::_grouped_mm", [[640, 512], [4, 512, 256], [4]], [BF16, BF16, "int"],
            "cutlass_grouped", "grouped_gemm", {"rows": 640, "n": 256, "k": 512, "groups": 4},
        ),
        (
            "sglang::fp8_gemm", [[64, 7168], [4096, 7168]], [FP8, FP8],
            DEEP_GEMM + "1u, 128u>(float*)", "gemm", {"m": 64, "n": 4096, "k": 7168},
        ),
        (
            "sglang::fp8_gemm", [[640, 7168], [4, 4096, 7168]], [FP8, FP8],
            DEEP_GEMM + "4u, 128u>(float*)",
            "grouped_gemm", {"rows": 640, "n": 4096, "k": 7168, "groups": 4},
        ),
        (
            "aten::_cudnn_attention_forward", [[2, 32, 64, 128], [2, 8, 96, 128], [2, 8, 96, 112]],
            [BF16] * 3, "cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention_forward",
            {"sequences": 2, "heads": 32, "query_length": 64, "kv_length": 96, "qk_dim": 128,
             "v_dim": 112},
        ),
        (
            "aten::_flash_attention_backward",
            [[2, 64, 32, 112], [2, 64, 32, 128], [2, 96, 8, 128], [2, 96, 8, 112]], [BF16] * 4,
            "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>",
            "attention_backward",
            {"sequences": 2, "heads": 32, "query_length": 64, "kv_length": 96, "qk_dim": 128,
             "v_dim": 112},
        ),
        (  # two lists of BF16 read, one written, by 1,000 chunks
            "aten::_foreach_lerp_", [[], [], []], ["TensorList", "TensorList", "Scalar"],
            FOREACH + "ListMetadata<2>, at::native::TernaryOpScalarFunctor<c10::BFloat16, 2, 2, 0>",
            "memory_bound", {"read": 1000 * CHUNK * 2 * 2, "written": 1000 * CHUNK * 2},
        ),
        (  # gradients read whose norm is clipped; what is written is a number per chunk
            "aten::_foreach_norm", [[], [], []], ["TensorList", "Scalar", ""],
            FOREACH + "ListMetadata<1>, at::native::LpNormFunctor<c10::BFloat16, "
            "(at::native::NormType)1, c10::BFloat16, 1, 1, 0>, float*, int>",
            "memory_bound", {"read": 1000 * CHUNK * 2, "written": 0},
        ),
        (  # parameters, gradients and two moments read, all but the gradients written
            "aten::_fused_adamw_", [[], [], [], []], ["TensorList"] * 4,
            "multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>, "
            "FusedAdamMathFunctor<float, 4, (ADAM_MODE)1, false>>",
            "memory_bound", {"read": 1000 * CHUNK * 4 * 4, "written": 1000 * CHUNK * 4 * 3},
        ),
        (
            "aten::cat", [[[4, 6], [4, 10]], []], ["TensorList", "Scalar"],
            "CatArrayBatchedCopy<at::native::OpaqueType<2u>, unsigned int, 4>",
            "memory_bound", {"read": 128, "written": 128},
        ),
        (  # the mask is read, 4 bytes an element; the result is as large as the first input
            "aten::mul", [[4, 6], [4, 1]], [BF16, FP32], "elementwise_kernel", "memory_bound",
            {"read": 48 + 16, "written": 48},
        ),
        (
            "aten::add_", [[4, 6], [4, 6], []], [FP32, BF16, "Scalar"], "elementwise_kernel",
            "memory_bound", {"read": 96 + 48, "written": 96},
        ),
        (
            "aten::copy_", [[4, 6], [4, 6], []], [FP32, BF16, "Scalar"], "elementwise_kernel",
            "memory_bound", {"read": 48, "written": 96},
        ),
        (
            "aten::mean", [[4, 6], []], [FP32, "ScalarList"], "reduce_kernel<512, 1>",
            "memory_bound", {"read": 96, "written": 0},
        ),
        (
            "aten::index_select", [[32000, 64], [], [5]], [BF16, "Scalar", INT64],
            "indexSelectSmallIndex", "memory_bound", {"read": 640, "written": 640},
        ),
        (
            "mylib::fused_norm", [[4, 6], [6]], [BF16, BF16], "triton_red_fused_0",
            "memory_bound", {"read": 60, "written": 48},
        ),
        (
            "dsv3::grouped_gemm", [[640, 512], [4, 256, 512], [640, 4], [4, 2, 4], [4]],
            [FP8, FP8, FP32, FP32, "int"], "_grouped_gemm_kernel",
            "grouped_gemm", {"rows": 640, "n": 256, "k": 512, "groups": 4},
        ),
    ],
)  # fmt: skip
def test_kernels_are_told_by_the_host_operator_and_its_shapes(
    profile: Any,
    tmp_path: Path,
    host: str,
    dims: list[Any],
    types: list[str],
    kernel: str,
    kind: str,
    sizes: dict[str, int],
) -> None:
    (mapped,) = mapped_by_host(profile, tmp_path, host, dims, types, kernel)
    assert mapped.operator is not None, mapped.reason
    assert (mapped.operator.kind, dict(mapped.operator.sizes)) == (kind, sizes)


def test_the_reduction_of_a_split_product_belongs_to_the_product(
    profile: Any, tmp_path: Path
) -> None:
    names = ("Memset (Device)", "nvjet_sm90_tst_splitK_TNT", "void cublasLt::splitKreduce_kernel<>")
    mapped = mapped_by_host(
        profile, tmp_path, "aten::mm", [[16, 8192], [8192, 1024]], [BF16, BF16], *names
    )
    assert {(place.label, place.launch[1:]) for place in mapped} == {("aten::mm", (0, -1))}
    assert {place.operator and place.operator.kind for place in mapped} == {"gemm"}


def test_the_innermost_host_operator_that_a_rule_covers_counts(
    profile: Any, tmp_path: Path
) -> None:
    """The bias of addmm is copied into the result first: a copy of its own."""
    profile.span("aten::copy_", 2, 4, category="cpu_op", dims=[[64, 256], [64, 256]])
    profile.launch("expand", called=2.5, at=55, us=3, cost=1)
    mapped = mapped_by_host(
        profile, tmp_path, "aten::addmm", [[256], [64, 512], [512, 256]], [BF16] * 3, "a", "b"
    )
    assert [place.label for place in mapped] == ["aten::copy_", "aten::addmm", "aten::addmm"]


def test_a_kernel_whose_launch_is_not_recorded_is_told_by_its_external_id(
    profile: Any, tmp_path: Path
) -> None:
    profile.span("aten::mm", 0, 50, category="cpu_op", dims=[[64, 512], [512, 256]])
    profile.events[-1]["args"]["External id"] = 12
    profile.kernel("nvjet", stream=7, at=60, us=9, correlation=3)
    profile.events[-1]["args"]["External id"] = 12
    (mapped,) = map_kernels(
        read_kineto(profile.write(tmp_path / "trace.json")), load_mapping("pytorch_profile")
    )
    assert mapped.label == "aten::mm"


@pytest.mark.parametrize(
    ("kernel", "role"),
    [
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(Args<4096ul>)", "communication"),
        ("ncclKernel_AllGather_RING_LL_Sum_int8_t", "communication"),
        ("void deep_ep::internode_ll::dispatch<true, false, 7168>(void*)", "communication"),
        ("void deep_ep::intranode::combine<__nv_bfloat16, 8, 768>(int4*)", "communication"),
        ("void deep_ep::intranode::notify_dispatch<8>(int const*)", "rank_wait"),
        ("void deep_ep::internode::cached_notify<true>(int)", "rank_wait"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "mapping", ["pytorch_profile", "reference_model_profile", "deepseek_training_profile"]
)
def test_transfers_between_gpus_are_communication_under_every_mapping(
    profile: Any, tmp_path: Path, kernel: str, role: str, mapping: str
) -> None:
    profile.span("c10d::allreduce_", 0, 50, category="cpu_op", dims=[[64, 512]])
    profile.launch(kernel, called=1, at=60, us=9)
    trace = read_kineto(profile.write(tmp_path / "trace.json"))
    (mapped,) = map_kernels(trace, load_mapping(mapping))
    assert (mapped.role.value, mapped.operator) == (role, None)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<X<1>, (M)1>(int)",
         "multi_tensor_apply_kernel"),
        ("nvjet_sm90_tst_64x8_64x16_1x2_h_bz_TNT", "nvjet_sm90_tst_64x8_64x16_1x2_h_bz_TNT"),
        ("Memcpy DtoH (Device -> Pinned)", "Memcpy DtoH"),
        ("_ZN" + 200 * "x", "_ZN" + 54 * "x" + "..."),
        ("(odd)", "(odd)"),
    ],
)  # fmt: skip
def test_names_are_shown_without_template_arguments(name: str, short: str) -> None:
    assert short_name(name) == short


def test_any_shipped_gpu_or_one_of_a_file_can_be_the_recorded_one(
    profile: Any, other_device_profile: Any, tmp_path: Path
) -> None:
    mapping = load_mapping("pytorch_profile")
    for built, device, asked, found in (
        (profile, "NVIDIA GeForce RTX 4090", None, "rtx_4090"),
        (profile, "NVIDIA B200", "b200_sxm", "b200_sxm"),
        (profile, None, "h20_sxm", "h20_sxm"),
        (other_device_profile, "NVIDIA A100-SXM4-80GB", "./a100.yaml", "./a100.yaml"),
    ):
        built.device = device
        built.launch("k", called=0, at=20, us=1)
        trace = read_kineto(built.write(tmp_path / "trace.json"))
        assert gpu_of_recording(trace, mapping, asked) == found


def test_kernels_of_one_name_and_reason_are_one_entry_and_the_longest_comes_first():
    """2 and 3 s of `a` for one reason, 4 s for another, 9 s of `b` that do not count."""
    kernels = [SimpleNamespace(seconds=seconds) for seconds in (2.0, 4.0, 9.0, 3.0)]
    places = [SimpleNamespace(label=label) for label in "aaba"]
    reasons = dict(zip(map(id, kernels), ("no rule", "no shape", None, "no rule"), strict=True))
    found = unmapped_kernels(
        SimpleNamespace(kernels=kernels), places, lambda kernel, _: reasons[id(kernel)]
    )
    assert found == (
        UnmappedKernel("a", "no rule", 2, 5.0),
        UnmappedKernel("a", "no shape", 1, 4.0),
    )
