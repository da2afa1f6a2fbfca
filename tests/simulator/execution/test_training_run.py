"""What a training scenario may ask for."""

import pytest

from reference_model.trace import COLLECTIVE_KINDS
from simulator.analysis.run import simulate
from simulator.execution import training, training_run
from simulator.execution.training import training_load
from simulator.execution.training_run import sharding_of, training_layout
from simulator.hardware.network.groups import Domains
from simulator.scenario.files import load_scenario
from simulator.workload.layout import ParallelLayout, stage_texts
from simulator.workload.schedules.grid import render_grid
from simulator.workload.schedules.known import build_schedule

MAIN = "dualpipe_h800_2048"


def run(*changes):
    return simulate(load_scenario(MAIN, changes)).result


def test_redundant_experts_that_placement_cannot_even_out_bring_the_slowest_rank_more_rows():
    job = load_scenario("dualpipe_h800_2048").job
    sizes = {"gpus": 288, "gpus_per_domain": 8, "pp": 4, "routed_experts": 256}
    layout = ParallelLayout(ep=72, redundant_experts=32, **sizes)
    load = training_load(job, layout, top_k=8, ranks_reached=4.0)
    # 288 slots on 72 GPUs: some GPU holds 4 whole experts of 256, 1.125 times the mean.
    assert (load.expert_rows, load.received_rows) == (4096 * 8 * 9 // 8, 4096 * 4 * 9 // 8)
    busier = training_load(job, layout, top_k=8, ranks_reached=4.0, rows_over_mean=1.5)
    assert (busier.expert_rows, busier.received_rows) == (36864 * 3 // 2, 18432 * 3 // 2)
    even = ParallelLayout(ep=8, redundant_experts=0, **sizes)
    assert training_load(job, even, top_k=8, ranks_reached=4.0).expert_rows == 4096 * 8


def test_copies_of_parameters_share_the_state_of_the_optimizer():
    """2,048 GPUs of 16 pipeline ranks, each stage on two of them, 64 GPUs to the experts."""
    job = load_scenario(MAIN).job
    layout = ParallelLayout(
        gpus=2048, gpus_per_domain=8, pp=16, ep=64, routed_experts=256, redundant_experts=0
    )
    found = sharding_of(job, layout, build_schedule("dualpipe", 16, 120, virtual_stages=None))
    assert (found.copies, found.expert_copies) == (256, 4)
    found = sharding_of(job, layout, build_schedule("1f1b", 16, 120, virtual_stages=None))
    assert (found.copies, found.expert_copies) == (128, 2)


def test_chunks_that_a_smaller_batch_has_run_are_not_run_again(monkeypatch):
    """To choose stages a run asks for layers in F, layers in B, and chunks of the best splits."""
    asked = []

    def run_chunks(keys, **how):
        asked.append(keys)
        return training.run_chunks(keys, **how)

    monkeypatch.setattr(training_run, "run_chunks", run_chunks)
    small = (
        "training.schedule=1f1b",
        "training.pp=4",
        "training.ep=16",
        "training.gap={value: 1.25 us, low: 1 us, high: 2 us, source: of this test}",
        "cluster.nodes=8",
        "cluster.node.gpu.hbm_capacity=900 GiB",
        "model.num_hidden_layers=9",
    )
    first = run(*small, "training.global_batch_sequences=192")
    assert len(asked) == 3
    second = run(*small, "training.global_batch_sequences=384")
    assert len(asked) == 3
    assert second.stages == first.stages


def test_interleaved_stages_are_as_many_as_the_ranks_hold():
    """120 micro-batches on 16 ranks are no multiple: groups of 20."""
    cut = run("training.schedule=interleaved", "training.virtual_stages=3")
    assert (cut.schedule.stages, cut.schedule.microbatches) == (48, 120)
    assert [len(cut.schedule.stages_of(rank)) for rank in range(16)] == [3] * 16
    assert stage_texts(cut.stages)[-2:] == ("moe + head", "mtp")


def test_a_layout_of_megatron_and_a_schedule_from_a_file_run_as_what_they_say(tmp_path):
    layout = "training.stages='Et*3|(tt|)*29,m|L'"
    changes = ("skew=none", "training.global_batch_sequences=2048", layout)
    named = run(*changes, "training.schedule=interleaved")
    assert stage_texts(named.stages) == ("embedding + 3 dense", "29 x (2 moe)", "mtp", "head")
    path = tmp_path / "mine.txt"
    path.write_text(render_grid(named.schedule), encoding="utf-8")
    read = run(*changes, f"training.schedule={path}")
    assert read.schedule.name == "mine"
    assert read.step.step_time_s == named.step.step_time_s
    assert read.memory == named.memory


def test_a_stage_says_what_its_layers_recompute():
    """What they compute again is what a job computes again whose every layer does."""
    stages = "[embedding + 3 dense + moe, 13 x (4 moe), 4 moe/layer, moe + head + mtp]"
    here, usual, everywhere = (
        run("training.schedule=1f1b", f"training.stages={text}", f"training.recompute={choice}")
        for text, choice in (
            (stages, "published"),
            (stages.replace("/layer", ""), "published"),
            (stages.replace("/layer", ""), "layer"),
        )
    )
    spans = [
        {
            (work, rank): run.step.chunks[run.step.keys[rank][place]].log.span_s
            for rank in (13, 14)
            for place, work in ((0, "F"), (-1, "B"))
        }
        for run in (here, usual, everywhere)
    ]
    assert spans[0]["F", 14] == spans[1]["F", 14]
    assert spans[0]["B", 14] == pytest.approx(spans[2]["B", 14], rel=1e-12)
    assert spans[0]["B", 14] > spans[1]["B", 14]
    assert spans[0]["B", 13] == spans[1]["B", 13]
    assert here.memory[14].activations == everywhere.memory[14].activations
    assert here.memory[13] == usual.memory[13]
    assert stage_texts(here.stages)[2] == "4 moe/layer"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["training.schedule=hanayo"],
            "training.schedule: unknown name 'hanayo'; known: .*dualpipe",
        ),
        (
            ["training.optimizer.name=adam"],
            r"training.optimizer.name: unknown name 'adam'; did you mean adamw\?$",
        ),
        (["training.schedule=./no.txt"], r"\./no.txt: no such file; known: 1f1b, "),
        (["cost_model=guess"], "cost_model: unknown name 'guess'; known: "),
        (["training.global_batch_sequences=1280"], "microbatches = 10, must be even and at least"),
        (
            ["training.global_batch_sequences=3840"],
            "microbatches = 30, must be even and at least 2 x 16 ranks = 32; with this batch and "
            "memory training.schedule=1f1b training.stages=default fits, and so do ",
        ),
        (
            ["training.schedule=zb_h2", "training.global_batch_sequences=1920"],
            r"15 micro-batches of 128 sequences \(global_batch_sequences\) on 16 ranks \(pp\): "
            "schedule zb_h2: microbatches = 15, must be at least 2 x 16 ranks - 1 = 31",
        ),
        (
            ["training.virtual_stages=2"],
            "virtual_stages = 2, must be left out; interleaved, interleaved_overlapped, zb_h1 take "
            "it; with this batch and memory training.schedule=1f1b training.virtual_stages=default "
            "fits, and so do 1f1b_overlapped",
        ),
        (
            ["training.schedule=interleaved", "training.virtual_stages=5"],
            "has 80 stages and the model 64 layers .*; allowed: at most one stage per layer",
        ),
        (
            ["training.schedule=interleaved", "training.virtual_stages=600"],
            "120 micro-batches on 9600 pipeline stages; allowed: a product of at most 1000000",
        ),
        (
            ["training.global_batch_sequences=15361"],
            "not a multiple of 128 data-parallel ranks .*; allowed: a multiple of 128",
        ),
        (["training.experts.redundant=8"], "256 routed . 8 redundant experts"),
        (
            ["training.pp=4"],
            r"pipeline rank 1 needs 107.8 GiB per GPU, 28.67 GiB more than its 79.11 GiB: ",
        ),
        (
            ["training.schedule=gpipe"],
            r"more than its .* training.schedule=1f1b fits, and so do .*zb_h1",
        ),
        (
            ["training.recompute=none"],
            r"more than its 79.11 GiB: activations .*, as does training.recompute=layer",
        ),
        (
            ["training.recompute=layer", "training.ep=1"],
            # What is done already is no way out.
            "training.tensor_parallel hold fewer parameters each, shorter micro-batches fewer "
            "activations$",
        ),
        (
            ["training.recompute=everything"],
            "training.recompute: 'everything' is not allowed: it must be 'published', 'none', "
            "'attention' or 'layer'",
        ),
        (
            ["training.stages=[embedding + 3 dense + 1 moe/all, 14 x (4 moe), moe + head + mtp]"],
            "cannot read '1 moe/all'; allowed: .*\"moe/layer\", of published, none, attention",
        ),
        (["training.communication_sms=132"], "leaves no SM for compute"),
        (["training.stages=[58 moe]"], "stages: 1 are listed"),
        (
            ["training.stages=[embedding + 3 dense + 2 moe, 14 x (4 moe), moe + head + mtp]"],
            "stages: 59 moe layers listed; allowed: all 58 of the model; stages=default",
        ),
        (
            ["training.virtual_stages=0"],
            r"training.virtual_stages: 0 is not allowed: it must be greater than 0, or 'default'$",
        ),
        (
            ["training.immediate_weights=[head.porj]"],
            r"unknown name 'head.porj'; did you mean head\.proj",
        ),
        (
            ["training.skew.rows.max_over_mean=0.5"],
            "max_over_mean: low 0.5 is not allowed; allowed: at least 1",
        ),
        # Each token gives a rank of 4 experts at most 4 of its 8 rows, where the mean is 8/64.
        (
            ["training.skew.rows.max_over_mean=32.5"],
            r"training.skew.rows.max_over_mean: 32.5: allowed: at most 32,",
        ),
        (
            ["training.skew=eplb_with_drift"],
            "training: skew.rows: drift and placed_for: a training job places its experts once; ",
        ),
        (["training.global_batch_sequences=1280000000"], "a product of at most"),
        (
            ["training.pp=128", "training.ep=16", "training.schedule=1f1b"],
            "has 128 stages and the model 64 layers .*; allowed: at most one stage per layer",
        ),
        (["calibration.kernel_sets=[nobody]"], "kernel sets nobody"),
        (["model.hidden_sizes=1"], r"hidden_sizes: unknown field; did you mean .*hidden_size"),
        (
            ["model.hidden_size=4096", "traces=/dev/null"],
            "/dev/null: recordings cannot be kept",
        ),
    ],
)
def test_what_cannot_run_is_one_clear_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        run(*changes)
    assert len(str(error.value).splitlines()) == 1


SHARED = (
    "training.sequence_length=32768",
    "training.global_batch_sequences=1920",
    "training.context_parallel=8",
)
"""The 32K extension of DeepSeek-V3 with every sequence shared by the GPUs of a node."""


def test_gpus_that_share_sequences_gather_latents_beside_their_share_of_the_work():
    shared = run(*SHARED)
    operators = shared.step.pair.log.graph.task_operators()
    seconds = dict(zip((op.name for op in operators), shared.step.pair.cost.seconds, strict=True))

    # 1,920 sequences on 128 data-parallel ranks, eight of which share each: 120 micro-batches.
    assert shared.schedule.microbatches == 120
    assert shared.job.micro_batch_tokens == 4096
    gathered = shared.costs.transfers_.collective(
        "all_gather",
        32_768 * 576 * 2,
        form="ring",
        group=Domains(domains=1, fewest=8, most=8),
        load=None,
    )
    assert seconds["attention.kv_latent.context_gather"] == gathered.seconds[0]
    # Four layers forward and four backward: a gather each, and a sum each backward.
    names = [op.name for op in operators]
    assert names.count("attention.kv_latent.context_gather") == 8
    assert names.count("attention.kv_latent.context_scatter") == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "training.context_parallel=7",
            "7 GPUs hold two pieces each of sequences of 32768 tokens; allowed: "
            "training.sequence_length a multiple of 28",
        ),
        (
            "training.context_parallel=256",
            "256 does not divide the 128 data-parallel ranks (2048 GPUs / pp 16); allowed: a "
            "divisor of them",
        ),
        (
            "training.micro_batch_sequences=7",
            "1920 is not a multiple of 16 groups of 8 GPUs that share them x 7 sequences",
        ),
    ],
)
def test_sequences_that_cannot_be_shared_are_refused(change, message):
    with pytest.raises(ValueError, match="training") as refused:
        run(*SHARED, change)
    assert message in str(refused.value)


@pytest.fixture(scope="module")
def of_two():
    """The shipped step with two GPUs to each layer: half as many pipelines, twice the batches."""
    return run("training.tensor_parallel=2")


def test_two_gpus_that_share_layers_gather_and_scatter_beside_half_of_the_work(of_two):
    assert (of_two.layout.dp, of_two.schedule.microbatches) == (64, 240)
    assert of_two.job.micro_batch_tokens == 2048
    operators = of_two.step.pair.log.graph.task_operators()
    seconds = dict(zip((op.name for op in operators), of_two.step.pair.cost.seconds, strict=True))
    scattered = of_two.costs.transfers_.collective(
        "reduce_scatter",
        4096 * 7168 * 2,
        form="ring",
        group=Domains(domains=1, fewest=2, most=2),
        load=None,
    )
    assert seconds["attention.o_proj.tensor_scatter"] == scattered.seconds[0]
    # Three gathers and two scatters of attention and shared experts, forward; three gathers again
    # and eight collectives backward. Four layers each way.
    names = [op.name for op in operators if op.kind in COLLECTIVE_KINDS]
    assert len(names) == 4 * (4 + 2) + 4 * (6 + 4)


def test_pipeline_sends_and_dispatch_are_of_a_gpus_own_tokens(of_two):
    ranks, load = next(iter(of_two.step.loads.sends.items()))
    sent = of_two.costs.transfers_.send(2048 * 7168 * 2, load=load)
    assert of_two.step.transfers_s[ranks] == sent.seconds[0]
    dispatch = next(op for op in of_two.step.pair.log.graph.operators if op.name == "moe.dispatch")
    assert dispatch["tokens"] == 2048


def test_memory_of_a_rank_that_shares_its_layers_by_hand(of_two):
    """Rank 8 of 16 holds four MoE layers of two stages each; weights, gradients and optimizer to
    the byte."""
    memory = of_two.memory[8]
    down = 7168 * 1536 + 7168 * 576
    rest = 1536 + 512 + 2 * 7168 + 256 * 7168 + 256
    halves = (1536 * 24_576 + 512 * 32_768 + 16_384 * 7168 + 3 * 7168 * 2048) // 2
    experts = 4 * 3 * 7168 * 2048
    matrices = down + halves + experts
    assert memory.weights == 8 * (matrices * (1 + 4 / 128**2) + rest * 2)
    assert memory.gradients == 8 * 4 * (matrices + rest)
    # 64 GPUs of a pipeline rank hold the same half, and as many of the other direction; an expert
    # has two copies in each.
    replicated = down + halves + rest
    assert memory.optimizer == 8 * 8 * (replicated / (64 * 2) + experts / (2 * 2))


def test_one_gpu_to_a_layer_is_no_tensor_parallelism():
    one = load_scenario(MAIN, ["training.tensor_parallel=1", "training.expert_tensor_parallel=1"])
    assert one.job == load_scenario(MAIN).job
    assert training_layout(one, one.job) == ParallelLayout(
        gpus=2048, gpus_per_domain=8, pp=16, ep=64, routed_experts=256, redundant_experts=0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["training.tensor_parallel=3"],
            "training.tensor_parallel: 3 does not divide num_attention_heads 128 of the model; "
            "allowed: 1, 2, 4, 8, 16, 32, 64",
        ),
        (
            ["training.expert_tensor_parallel=3"],
            "training.expert_tensor_parallel: 3 does not divide moe_intermediate_size 2048",
        ),
        (
            ["training.tensor_parallel=2", "training.sequence_length=4095"],
            "training.tensor_parallel: 2 GPUs share the tokens of sequences of 4095 tokens on "
            "each; allowed: training.sequence_length a multiple of 2",
        ),
        (
            ["model=deepseek_v3_2", "training.tensor_parallel=2"],
            "training.tensor_parallel: 2: the indexer of sparse attention is not split; allowed: 1",
        ),
        (
            ["training.axes=[tensor, context]"],
            "training.axes: tensor, context: allowed: each of tensor, context, expert, data, "
            "pipeline once",
        ),
    ],
)
def test_layers_that_cannot_be_shared_are_refused(changes, message):
    with pytest.raises(ValueError, match="training") as refused:
        run(*changes)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


# -- weights, gradients and optimizer of three layouts, byte by byte -------------------------------

VOCABULARY = 129280 * 7168
OF_ATTENTION = 7168 * 1536 + 7168 * 576 + 1536 * 24576 + 512 * 32768 + 16384 * 7168
NORMS = 1536 + 512 + 2 * 7168
OF_EXPERT = 3 * 7168 * 2048
OF_DENSE = OF_ATTENTION + 3 * 7168 * 18432
"""Matrices of a dense layer."""
OUTSIDE_EXPERTS = OF_ATTENTION + OF_EXPERT
"""Those of an MoE layer but for its routed experts, with one shared expert."""
ROUTER = 256 * 7168 + 256
PROJECTION = 2 * 7168 * 7168
"""Of multi-token prediction, which has three norms more than a layer."""
IN_FP8 = 1 + 4 / (128 * 128)
"""Bytes of a quantised value with its share of a scale."""


def test_memory_of_dualpipe_by_hand():
    """Rank 0 of 16 holds the first and the last stage. Its parameters have 256 copies, 128 GPUs in
    each direction, and an expert four; ZeRO-1 shares master weights and two moments out."""
    memory = run("skew=none").memory[0]
    matrices = 3 * OF_DENSE + 3 * OUTSIDE_EXPERTS + PROJECTION
    rest = 2 * VOCABULARY + 7168 + 6 * NORMS + 3 * ROUTER + 3 * 7168
    experts = 3 * 4 * OF_EXPERT
    assert memory.weights == (matrices + experts) * IN_FP8 + 2 * rest == 6_793_812_640
    assert memory.gradients == 4 * (matrices + rest + experts) == 19_736_284_160
    assert memory.optimizer == 8 * ((matrices + rest) / 256 + experts / 4) == 1_194_639_256


def test_memory_of_sharded_parameters_by_hand():
    """256 GPUs without a pipeline, four experts of each layer on each: 256 copies, and four of an
    expert. Beside its shards a GPU holds the two neighbours that are largest, the embedding with
    the first dense layer and the second one: gathered in BF16, their gradients in FP32, and working
    copies in FP8 of the one that computes."""
    changes = ["skew=none", "global_batch_sequences=512"]
    memory = simulate(load_scenario("fsdp_b200_256", changes)).result.memory[0]
    of_moe = OUTSIDE_EXPERTS + ROUTER + NORMS
    replicated = (
        2 * VOCABULARY + 7168 + 3 * (OF_DENSE + NORMS) + 59 * of_moe + PROJECTION + 3 * 7168
    )
    shard = replicated / 256 + 59 * 4 * OF_EXPERT / 4
    largest = VOCABULARY + 2 * (OF_DENSE + NORMS)
    assert largest == 2_093_645_824
    assert memory.weights == 2 * shard + 2 * largest + OF_DENSE * IN_FP8
    assert memory.gradients == 4 * shard + 4 * largest
    assert memory.optimizer == 8 * shard == 21_332_390_232


def test_memory_of_four_layers_in_bfloat16_by_hand():
    """Eight GPUs hold three dense layers, one with experts and multi-token prediction; 32 experts
    of a layer lie on each, and have no copy."""
    changes = [
        "skew=none", "cluster.nodes=1", "model.num_hidden_layers=4", "ep=8", "recipe=bf16",
        "zero=1", "global_batch_sequences=16",
    ]  # fmt: skip
    memory = simulate(load_scenario("fsdp_b200_256", changes)).result.memory[0]
    of_moe = OUTSIDE_EXPERTS + ROUTER + NORMS
    replicated = 2 * VOCABULARY + 7168 + 3 * (OF_DENSE + NORMS) + 2 * of_moe + PROJECTION + 3 * 7168
    experts = 2 * 32 * OF_EXPERT
    assert memory.weights == 2 * (replicated + experts) == 13_982_327_808
    assert memory.gradients == 4 * (replicated + experts) == 27_964_655_616
    assert memory.optimizer == 8 * (replicated / 8 + experts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["zero=2"],
            "training.zero: 2: shares each micro-batch's gradients as its backward ends, and the "
            "schedule dualpipe puts weight gradients off.*allowed: zero 0 or 1, or a schedule that "
            "computes gradients at once, such as 1f1b",
        ),
        (["zero=3", "schedule=zb_h1"], "the schedule zb_h1 puts weight gradients off"),
        (
            ["zero=0", "parameter_gather=overlapped"],
            "with zero 0 every GPU updates all of its parameters.*allowed: exposed, or zero from 1",
        ),
        (
            ["optimizer.name=muon", "zero=3", "schedule=1f1b"],
            "zero: 3: cuts every matrix into shards.*allowed: zero from 0 to 2, or another",
        ),
        (["optimizer.name=muon", "tensor_parallel=2"], "tensor_parallel.*cut them; allowed: both"),
        (["optimizer={name: muon, offload: cpu}"], "offload: cpu.*allowed: none, or another"),
        (["optimizer.offload=cpu"], "cluster.node.host: h800_2048 states no CPUs.*offload=none"),
    ],
)
def test_state_that_cannot_be_kept_so_is_refused_with_a_way_out(changes, message):
    with pytest.raises(ValueError, match=message):
        run("skew=none", *changes)
