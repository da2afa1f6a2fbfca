"""What holds for every training and serving step that a user may ask for, not only the shipped.

Jobs are drawn at random: GPU, nodes, pipeline, expert parallelism, schedule, model, batch, load. A
job runs or is refused with one line that names a way out; no faster machine slows it, no skew
speeds it up, and nothing is lost on the way. A few are tried in every run of the suite, many in
the slow one.
"""

import json
import re

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from serving_checks import check_step
from training_checks import check_parts

from simulator.analysis.run import simulate
from simulator.execution.training_draws import draw_step
from simulator.scenario.files import load_scenario
from simulator.workload.layout import stage_texts
from simulator.workload.schedules.known import SCHEDULES

TRAINED_ON = {
    "h800_sxm": "h800_sxm",
    "h100_sxm": "h100_sxm_reference",
    "h200_sxm": "h200_sxm_reference",
    "h20_sxm": "h20_sxm",
    "b200_sxm": "b200_sxm_reference",
    "gb200": "gb200_reference",
}
"""{GPU: calibration with kernels of a training step}; an engine's tables hold none of backward."""
GPUS = ("h800_sxm", "h100_sxm", "h200_sxm", "h20_sxm", "b200_sxm", "gb200")
BANDWIDTHS = ("node.nic.bandwidth", "node.gpu.nvlink_bandwidth", "node.gpu.hbm_bandwidth")
TILE_WAVES = 0.002
"""A step on more SMs may take this much longer: with other tiles some products end in a fuller
last wave and others in an emptier one."""
WAY_OUT = re.compile(r"allowed|known|would fit|more ranks in|must be|must have|record one with")

FEW, MANY = (
    settings(
        max_examples=examples,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    for examples in (5, 150)
)


@st.composite
def training_jobs(draw):
    """Changes of the shipped training step: some GPU, layout, schedule, model, batch and load."""
    gpu = draw(st.sampled_from(GPUS))
    pp = draw(st.sampled_from([1, 2, 4, 6, 8, 16]))
    ep = draw(st.sampled_from([4, 8, 16, 24, 32, 64]))
    replicas = draw(st.integers(1, 3))
    gpus = pp * ep * replicas
    assume(gpus % 8 == 0)
    layers = draw(st.integers(max(3 + pp, 4), 3 + 4 * pp))
    schedule = draw(st.sampled_from(sorted(SCHEDULES)))
    microbatches = 2 * pp + draw(st.integers(0, 2 * pp))
    return [
        f"cluster.nodes={gpus // 8}",
        f"cluster.node.gpu={gpu}",
        f"calibration={TRAINED_ON[gpu]}",
        f"model.num_hidden_layers={layers}",
        f"training.pp={pp}",
        f"training.ep={ep}",
        f"training.schedule={schedule}",
        f"training.global_batch_sequences={ep * replicas * microbatches}",
        f"training.sequence_length={draw(st.sampled_from([1024, 4096]))}",
        f"training.communication_sms={draw(st.sampled_from([8, 20, 24]))}",
        f"training.skew.rows.max_over_mean={draw(st.sampled_from([1.0, 1.25]))}",
    ]


def run(changes):
    return simulate(load_scenario("dualpipe_h800_2048", changes)).result


def check_training_job(changes):
    try:
        result = run(changes)
    except ValueError as refusal:
        check_refusal(str(refusal))
        return
    check_parts(result)
    drawn = draw_step(result)
    assert (drawn.upper_bound_s >= drawn.slower_s * (1 - 1e-9)).all()
    assert (drawn.step_s >= drawn.slower_s).all()
    # A machine that is faster may choose other stages, as even and at most 1% slower.
    changes = [*changes, f"training.stages={json.dumps(stage_texts(result.stages))}"]
    step = result.step.step_time_s
    node = result.scenario.cluster.node
    for path in BANDWIDTHS:
        *_, owner, field = ("cluster", *path.split("."))
        value = getattr(node.nic if owner == "nic" else node.gpu, field)
        faster = run([*changes, f"cluster.{path}={2 * value / 1e9} GB/s"])
        assert faster.step.step_time_s <= step * (1 + 1e-9), path
    wider = run([*changes, f"cluster.node.gpu.sms={node.gpu.sms * 9 // 8}"])
    assert wider.step.step_time_s <= step * (1 + TILE_WAVES)
    if result.job.skew.max_over_mean > 1.0:
        even = run([*changes, "training.skew.rows.max_over_mean=1.0"])
        assert draw_step(even).expected_s <= draw_step(result).expected_s


def check_refusal(message):
    assert "\n" not in message
    assert WAY_OUT.search(message), message


@st.composite
def serving_jobs(draw):
    """Changes of a shipped serving step: some GPU, size, requests, experts and load.

    -> (scenario, changes)
    """
    gpu = draw(st.sampled_from(GPUS))
    changes = [f"cluster.node.gpu={gpu}", f"calibration={gpu}"]
    decode = draw(st.booleans())
    gpus = draw(st.sampled_from([8, 16, 32, 64, 72, 128, 144]))
    redundant = draw(st.sampled_from([0, 16, 32, -256 % gpus]))
    rows = draw(
        st.sampled_from(
            ["random", "{zipf_exponent: 0.25}", "{zipf_exponent: 0.75}", "{max_over_mean: 1.3}"]
        )
    )
    policy = draw(st.sampled_from(["in_order", "global", "hierarchical", "eplb"]))
    changes += [
        f"gpus={gpus}",
        "cluster.nodes=18",
        f"experts.redundant={redundant}",
        f"skew={{rows: {rows}}}",
        f"experts.placement={policy}",
    ]
    if decode:
        changes.append(f"requests.requests_per_gpu={draw(st.sampled_from([1, 8, 32, 128]))}")
        changes.append(f"requests.context_tokens={draw(st.sampled_from([512, 4096, 16384]))}")
        return "decode_ep128_profile", changes
    changes.append(f"requests.tokens_per_gpu={draw(st.sampled_from([4096, 16384]))}")
    changes.append(f"requests.prompt_tokens={draw(st.sampled_from([1024, 4096]))}")
    return "prefill_ep32_profile", changes


def check_serving_job(scenario, changes):
    def step(*more):
        return simulate(load_scenario(scenario, [*changes, *more])).result

    try:
        result = step()
    except ValueError as refusal:
        check_refusal(str(refusal))
        return
    check_step(result.step)
    node = result.scenario.cluster.node
    for path, value in (
        ("node.nic.bandwidth", node.nic.bandwidth),
        ("node.gpu.nvlink_bandwidth", node.gpu.nvlink_bandwidth),
        ("node.gpu.hbm_bandwidth", node.gpu.hbm_bandwidth),
    ):
        faster = step(f"cluster.{path}={2 * value / 1e9} GB/s")
        assert faster.step.step_s <= result.step.step_s * (1 + 1e-9), path
    if any("max_over_mean" in change for change in changes):
        assert result.draws.expected_s > result.step.step_s


@FEW
@given(training_jobs())
def test_a_training_job_of_any_shape_runs_or_names_a_way_out(changes):
    check_training_job(changes)


@pytest.mark.slow
@MANY
@given(training_jobs())
def test_many_training_jobs_of_any_shape_run_or_name_a_way_out(changes):
    check_training_job(changes)


@FEW
@given(serving_jobs())
def test_a_serving_step_of_any_shape_runs_or_names_a_way_out(job):
    check_serving_job(*job)


@pytest.mark.slow
@MANY
@given(serving_jobs())
def test_many_serving_steps_of_any_shape_run_or_name_a_way_out(job):
    check_serving_job(*job)
