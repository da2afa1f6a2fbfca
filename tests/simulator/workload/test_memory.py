"""Memory of a training rank, byte by byte: what lies on the GPU in every recipe."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from reference_model.config import load_model_config
from reference_model.split import Split
from simulator.scenario.training import OptimizerTypes
from simulator.workload import memory
from simulator.workload.chunk import operators_of
from simulator.workload.load import Load
from simulator.workload.memory import (
    GpuMemory,
    Infeasible,
    MemoryModel,
    check_fits,
    kept_bytes,
    layer_memory,
    layer_parameters,
)
from simulator.workload.recorded import recorded_trace
from simulator.workload.schedules.held import held_activations
from simulator.workload.schedules.one_f_one_b import one_f_one_b
from simulator.workload.sharding import HeldParameters, HeldWeight, Parameters, Sharding

V3 = load_model_config("deepseek_v3")
LOAD = Load(
    tokens=4096, context=4096, sequences=1, expert_rows=32768, received_rows=30000, local_experts=4,
    group_tokens=4096, group_sequences=1,
)  # fmt: skip
SCHEDULE = one_f_one_b(4, 8)
KINDS = ("embedding", "dense", "moe", "head", "mtp")
STAGES = (("embedding", "dense", "moe"), ("moe",) * 4, ("moe", "moe"), ("mtp",))

# Of one MoE layer with 4 local experts: q_a, kv_a, q_b, kv_b and o; shared expert; experts.
ATTENTION = 7168 * 1536 + 7168 * 576 + 1536 * 24576 + 512 * 32768 + 16384 * 7168
EXPERT = 3 * 7168 * 2048
MATRICES = ATTENTION + EXPERT + 4 * EXPERT
ROUTER_AND_NORMS = 256 * 7168 + 256 + 1536 + 512 + 2 * 7168


def memory_model(recipe, types=None, recompute="published"):
    trace = recorded_trace(V3, "train", recipe, recompute=recompute)
    trace = trace.beside([recorded_trace(V3, "train", recipe, recompute="layer")])
    kinds = (*KINDS, "moe/layer")
    return MemoryModel(
        layers=layer_memory(V3, trace, operators_of(trace, LOAD), LOAD, kinds),
        schedule=SCHEDULE,
        in_flight=[held_activations(SCHEDULE, rank) for rank in range(4)],
        # 512 GPUs, 4 pipeline ranks, 64 GPUs that share the experts: 128 copies, 2 of an expert.
        sharding=Sharding(
            zero=1,
            types=types or OptimizerTypes(),
            copies=128,
            expert_copies=2,
            gathers_ahead=False,
            reduces_beside=False,
            pairs=False,
        ),
        reserved=0.0,
    )


STREAM = 2 * 7168 * 4096
"""Bytes of a residual stream."""


def test_recomputed_layers_keep_their_stream_and_one_of_them_its_forward_at_a_time():
    """Rank 1 of four has 3 micro-batches in flight, of 4 layers each."""
    stages = (STAGES[0], ("moe/layer",) * 4, *STAGES[2:])
    model = memory_model("fp8")
    whole, usual = (model.rank(1, split, immediate=()) for split in (stages, STAGES))
    saved = 4232 * 32768 + 4 * 4 + 7424 * 30000 + 63808 * 4096
    assert usual.activations == 3 * 4 * saved
    assert whole.activations == 3 * 4 * STREAM
    assert whole.workspace - usual.workspace == saved + 203_872 * 4096 - STREAM
    assert (whole.weights, whole.gradients, whole.optimizer) == (
        usual.weights, usual.gradients, usual.optimizer,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recompute", "per_token"),
    [("none", 63808 + 203_872), ("published", 63808), ("attention", 63808 - 25_600)],
)
def test_activations_of_a_rank_by_what_is_recomputed(recompute, per_token):
    """3 micro-batches of 4 layers; the parts by hand in test_recomputation of the model."""
    memory = memory_model("fp8", recompute=recompute).rank(1, STAGES, immediate=())
    layer = 4232 * 32768 + 4 * 4 + 7424 * 30000 + per_token * 4096
    assert memory.activations == 3 * 4 * layer


def test_the_matrices_of_a_layer_are_what_the_config_says():
    assert MATRICES == 407_306_240
    assert ROUTER_AND_NORMS == 1_851_648


@pytest.mark.parametrize(
    ("recipe", "weights", "saved"),
    [
        # A byte for each value of a matrix and 4 for each 128 x 128; two bytes for the rest. What a
        # layer keeps: per routed row, per local expert, per received token and per token.
        (
            "fp8",
            4 * (407_306_240 + 99_440 + 2 * 1_851_648),
            4232 * 32768 + 4 * 4 + 7424 * 30000 + 63808 * 4096,
        ),
        # Twice a byte for each value, and a byte for 32 of them.
        (
            "mxfp8",
            4 * (2 * 407_306_240 * 33 / 32 + 2 * 1_851_648),
            4232 * 32768 + 4 * 4 + 7424 * 30000 + 63808 * 4096,
        ),
        (
            "bfloat16",
            4 * 2 * (407_306_240 + 1_851_648),
            8200 * 32768 + 4 * 4 + 14368 * 30000 + 75456 * 4096,
        ),
    ],
)
def test_four_moe_layers_of_a_rank_in_every_recipe(recipe, weights, saved):
    rank = memory_model(recipe).rank(1, STAGES, ())
    assert rank.weights == weights
    assert rank.gradients == 4 * 4 * 409_157_888
    # FP32 master weights and two BF16 moments of a shard: 128 data-parallel ranks, 2 of an expert.
    replicated, experts = 409_157_888 - 176_160_768, 176_160_768
    assert rank.optimizer == 4 * 8 * (replicated / 128 + experts / 2)
    # Rank 1 of 4 holds three micro-batches of 1F1B.
    assert rank.activations == 3 * 4 * saved


@pytest.mark.parametrize(
    ("types", "gradient", "state"),
    [
        (OptimizerTypes(moments="float32"), 4, 12),
        (OptimizerTypes(master="bfloat16", gradients="bfloat16"), 2, 6),
        (OptimizerTypes(name="lion"), 4, 6),
    ],
)
def test_gradients_and_optimizer_state_have_the_types_of_the_job(types, gradient, state):
    rank = memory_model("fp8", types).rank(1, STAGES, ())
    assert rank.gradients == 4 * gradient * 409_157_888
    assert rank.optimizer == 4 * state * (232_997_120 / 128 + 176_160_768 / 2)


def test_the_matrices_of_a_layer_are_those_that_it_multiplies_by():
    held = memory_model("fp8").layers["moe"].parameters
    assert sorted(held.replicated.matrices) == sorted(
        [
            (1536, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (256, 7168),
            (4096, 7168), (7168, 2048),
        ]
    )  # fmt: skip
    # Those of experts are held transposed.
    assert sorted(held.experts.matrices) == [(2048, 7168)] * 4 + [(7168, 4096)] * 4
    assert memory_model("fp8").layers["head"].parameters.replicated.matrices == ()


def test_a_layer_knows_every_weight_that_has_a_working_copy():
    layers = memory_model("fp8").layers
    assert layers["moe"].parameters.experts.weights == (
        (HeldWeight("fp8_e4m3", 4, 2048, 7168), 1),
        (HeldWeight("fp8_e4m3", 4, 7168, 4096), 1),
    )
    of_layer = dict(layers["moe"].parameters.replicated.weights)
    assert of_layer[HeldWeight("bfloat16", 1, 256, 7168)] == 1  # the gate
    table = HeldWeight("bfloat16", 1, 129280, 7168, matrix=False)
    assert layers["embedding"].parameters.replicated.weights == ((table, 1),)
    assert layers["head"].parameters.replicated.weights == ((table, 1),)
    # Multi-token prediction shares them: its own are those of a layer, and a projection.
    projection = HeldWeight("fp8_e4m3", 1, 7168, 14336)
    assert dict(layers["mtp"].parameters.replicated.weights) == {**of_layer, projection: 1}
    two = layers["moe"].parameters + layers["mtp"].parameters
    assert dict(two.replicated.weights) == dict.fromkeys(of_layer, 2) | {projection: 1}
    weights = memory_model("mxfp8").layers["moe"].parameters.experts.weights
    assert [(weight.copies, count) for weight, count in weights] == [(2, 1)] * 2


def test_multi_token_prediction_on_a_rank_of_its_own_keeps_copies_of_embedding_and_head():
    model = memory_model("fp8")
    # Its layer, a projection of 2 x 7,168 that runs in FP8, three norms, and what it shares.
    projection, vocabulary = 2 * 7168 * 7168, 129280 * 7168
    own = MATRICES + projection + ROUTER_AND_NORMS + 3 * 7168
    assert model.held(3, STAGES).every.count == own + vocabulary + vocabulary + 7168
    assert model.held(3, STAGES).every.quantized == MATRICES + projection
    beside = (*STAGES[:3], ("embedding", "head", "mtp"))
    assert model.held(3, beside) == model.held(3, STAGES)


def test_a_gpu_has_the_parts_that_its_job_has_largest_first_in_words():
    memory = GpuMemory(weights=2.0 * 2**30, workspace=3.0 * 2**30, reserved=0.0, gradients=2.0**30)
    assert list(memory.parts) == ["weights", "gradients", "workspace", "reserved"]
    assert memory.total == 6.0 * 2**30
    assert str(memory) == "workspace 3 GiB, weights 2 GiB, gradients 1 GiB, reserved 0 B"


def test_a_dense_layer_holds_attention_norms_and_its_feed_forward():
    dense = ATTENTION + 1536 + 512 + 2 * 7168 + 3 * 7168 * 18432
    assert dense == 583_483_392
    moe = MATRICES + ROUTER_AND_NORMS
    assert memory_model("fp8").held(0, STAGES).every.count == 129280 * 7168 + dense + moe


def test_weight_gradients_are_computed_at_once_until_the_fullest_rank_fits():
    """1F1B defers none, so that computing them at once frees nothing: all or none."""
    model = memory_model("fp8")
    fullest = max(rank.total for rank in model.ranks(STAGES, ()))
    assert model.fitting(STAGES, fullest) == ()
    assert len(model.fitting(STAGES, fullest - 1)) == sum(
        layer.weight_flops[matrix] > 0 for matrix, layer in model.matrices().items()
    )


@pytest.mark.parametrize("ranks", [2, 4])
def test_gpus_that_share_a_layer_each_hold_what_is_not_split(ranks):
    """The down-projections of attention, its norms and the router."""
    held = layer_parameters(V3, "moe", (), local_experts=0, split=Split(ranks))
    whole = 7168 * 1536 + 7168 * 576 + ROUTER_AND_NORMS
    assert held.duplicated == whole
    split = ATTENTION + EXPERT - 7168 * 1536 - 7168 * 576
    assert held.replicated.count == whole + split // ranks
    assert layer_parameters(V3, "moe", (), local_experts=0).duplicated == 0


def test_gpus_that_share_the_width_of_experts_hold_a_part_of_each():
    held = layer_parameters(V3, "moe", (), local_experts=4, split=Split(expert_tensor=2))
    assert held.experts.count == 4 * EXPERT // 2


@pytest.mark.parametrize(("recipe", "copies"), [("fp8", 1), ("mxfp8", 2)])
def test_values_of_working_copies_are_those_of_the_matrices_once_or_twice(recipe, copies):
    held = memory_model(recipe).layers["moe"].parameters.every
    assert (held.quantized, held.cast) == (MATRICES, copies * MATRICES)


def test_matrices_that_keep_most_per_flop_are_computed_first_and_no_more_of_them_than_need_be():
    """10, 30 and 20 bytes for 2, 10 and 5 FLOPs: 5, 3 and 4 each; a copy keeps 40 for none."""
    kept = {"a": 10, "b": 30, "c": 20, "copy": 40}
    layer = SimpleNamespace(kept=kept, weight_flops={"a": 2.0, "b": 10.0, "c": 5.0, "copy": 0.0})
    model = SimpleNamespace(
        matrices=lambda: dict.fromkeys(kept, layer),
        ranks=lambda stages, immediate: [
            SimpleNamespace(total=100 - sum(kept[name] for name in immediate)),
            SimpleNamespace(total=50),
        ],
    )
    found = [MemoryModel.fitting(model, (), capacity) for capacity in (100, 99, 90, 70, 69, 0)]
    assert found == [(), ("a",), ("a",), ("a", "c"), ("a", "c", "b"), ("a", "c", "b")]


def test_what_is_computed_at_once_is_deferred_no_more():
    layer = SimpleNamespace(deferred=100, kept={"a": 30, "b": 20})
    assert memory._left(layer, ()) == 100
    assert memory._left(layer, ("a", "of another layer")) == 70
    assert memory._left(layer, ("a", "b")) == 50


def test_a_layer_defers_what_its_backward_saves_and_operands_of_other_gpus_tokens(monkeypatch):
    """A product keeps 50 bytes of its own tokens and 80 of all, beside 1,000 that are saved; the
    largest operator moves 7, and a layer recomputed whole keeps 300 where it saved 200."""
    monkeypatch.setattr(memory, "layer_parameters", lambda *_, **__: None)

    def product(read):
        return SimpleNamespace(name="up.weight_grad", bytes_read=read, bytes_written=4, flops=6)

    def operators(kind, phase):
        return [
            product(84)
            if phase == "weight_grad"
            else SimpleNamespace(bytes_read=5, bytes_written=2)
        ]

    saved = {"forward": 200, "recompute": 300, "input_grad": 1000}
    trace = SimpleNamespace(
        operators=lambda kind, phase, _: [product(54)],
        saved_bytes=lambda kind, phase, _: saved[phase],
        split=None,
    )
    load = SimpleNamespace(workload=None, local_experts=0)
    found = layer_memory(V3, trace, operators, load, ["moe"])["moe"]
    assert (found.saved, found.deferred, found.workspace) == (200, 1000 + 80 - 50, 7 + 100)
    assert (sum(found.kept.values()), sum(found.weight_flops.values())) == (80, 6)


def test_a_stage_works_in_the_space_of_its_largest_layer():
    model = memory_model("fp8")
    rooms = {kind: model.layers[kind].workspace for kind in ("embedding", "dense")}
    assert rooms["embedding"] < rooms["dense"]
    assert model.rank(0, (tuple(rooms), *STAGES[1:]), ()).workspace == rooms["dense"]


def test_a_weight_gradient_keeps_what_its_operators_read_and_none_of_them_wrote():
    cast = SimpleNamespace(bytes_read=200, bytes_written=100)
    gemm = SimpleNamespace(bytes_read=100 + 50 + 400, bytes_written=400)
    assert kept_bytes([cast, gemm]) == 200 + 50


def test_the_workspace_of_a_layer_is_all_that_its_largest_operator_reads_and_writes():
    trace = recorded_trace(V3, "train", "fp8")
    found = layer_memory(V3, trace, operators_of(trace, LOAD), LOAD, ("head",))["head"]
    # Logits in BF16: 4,096 states of 7,168 times 129,280 columns of weights.
    assert found.workspace == 2 * (4096 * 7168 + 7168 * 129280 + 4096 * 129280)


def test_a_layout_that_does_not_fit_says_what_helps_once_it_is_read():
    asked = []
    error = Infeasible("too large", lambda: asked.append("read") or "; take less")
    assert asked == []
    assert str(error) == "too large; take less"
    assert (asked, error.reason) == (["read"], "too large")
    assert str(pickle.loads(pickle.dumps(error))) == "too large; take less"


def test_a_rank_of_two_stages_holds_both_and_works_in_the_space_of_the_larger():
    parts = {
        name: SimpleNamespace(
            held=HeldParameters(Parameters(count)), exchanged=name, workspace=room
        )
        for name, count, room in (("dense", 10, 7.0), ("moe", 20, 5.0))
    }
    sharding = SimpleNamespace(
        weight_bytes=lambda held, stages: (held.every.count, stages),
        gradient_bytes=lambda held, stages: (2 * held.every.count, stages),
        optimizer_bytes=lambda held: 8 * held.every.count,
    )
    model = SimpleNamespace(
        in_flight=[None, SimpleNamespace(stages=(0, 2))],
        _of_stage=lambda stage, alone, immediate: parts[stage[0]],
        _sum=lambda kinds: HeldParameters(),
        sharding=sharding,
        activations=lambda rank, stages, immediate: np.array([3.0, 11.0, 5.0]),
        reserved=1.0,
    )
    found = MemoryModel.rank(model, 1, (("dense",), ("head",), ("moe",)), ())
    both = ["dense", "moe"]
    assert (found.weights, found.gradients, found.optimizer) == ((30, both), (60, both), 240)
    assert (found.activations, found.workspace, found.reserved) == (11.0, 7.0, 1.0)


def test_the_rank_that_needs_most_says_by_how_much_it_exceeds_its_memory():
    ranks = [GpuMemory(weights=gib * 2**30, workspace=0.0, reserved=0.0) for gib in (3.0, 5.0, 4.0)]
    check_fits(ranks, (("dense",),) * 3, 5 * 2**30, chosen=False)
    said = r"^pipeline rank 1 needs 5 GiB per GPU, 512 MiB more than its 4.5 GiB: weights 5 GiB, "
    with pytest.raises(Infeasible, match=said):
        check_fits(ranks, (("dense",),) * 3, 4.5 * 2**30, chosen=False)
