"""The example of a mapping says what the page promises."""

import json
from pathlib import Path

from simulator.workload.profile.kernel_mapping import load_mapping
from simulator.workload.profile.kineto import read_kineto
from simulator.workload.profile.mapped_kernels import map_kernels

EXAMPLE = Path(__file__).resolve().parents[3] / "docs/examples/own_kernels.yaml"


def test_the_example_maps_an_engines_own_kernels(tmp_path):
    types = {"Input Dims": [[64, 7168]], "Input type": ["c10::Float8_e4m3fn"]}
    events = [{"cat": "cpu_op", "name": "own::mlp", "ts": 0, "dur": 90, "args": types}]
    names = ("void own_gemm<4096, 7168>(int)", "own_norm", "own_all_to_all", "own_barrier")
    for number, name in enumerate(names):
        at = {"ts": 1 + number, "dur": 0, "args": {"correlation": number}}
        events.append({"cat": "cuda_runtime", "name": "launch", **at})
        args = {"stream": 7, "correlation": number, "grid": [64, 1, 1], "block": [128, 1, 1]}
        kernel = {"name": name, "ts": 100 + 10 * number, "dur": 9, "args": args}
        events.append({"cat": "kernel", **kernel})
    path = tmp_path / "trace.json"
    path.write_text(json.dumps([{"ph": "X", "tid": 1, **event} for event in events]))
    product, norm, transfer, wait = map_kernels(read_kineto(path), load_mapping(str(EXAMPLE)))
    assert product.operator.kind == "gemm"
    assert dict(product.operator.sizes) == {"m": 64, "n": 4096, "k": 7168}
    assert dict(norm.operator.sizes) == {"read": 64 * 14336, "written": 64 * 14336}
    assert [place.role.value for place in (transfer, wait)] == ["communication", "rank_wait"]
