"""Kernels on one GPU of ten SMs and an HBM of 100 bytes/s, by hand."""

from functools import partial

import pytest
import simpy

from simulator.execution.machine.gpu import Gpu, KernelLaunch, fair_shares

TEN = partial(Gpu, sms=10, hbm=100.0)


def persistent(seconds, sms, hbm_bytes=0.0):
    return KernelLaunch(seconds, sms, persistent=True, hbm_bytes=hbm_bytes)


def refilling(seconds, hbm_bytes=0.0, cta_seconds=0.0):
    return KernelLaunch(seconds, 10, persistent=False, hbm_bytes=hbm_bytes, cta_seconds=cta_seconds)


def ends(*launches, gpu_of=TEN, held=0, release_at=None):
    """When each of (launched at, kernel[, priority]) ends, and the GPU."""
    env = simpy.Environment()
    gpu = gpu_of(env)
    found = {}

    def launch(number, at, kernel, priority=0):
        yield env.timeout(at)
        yield gpu.run(kernel, priority=priority)
        found[number] = env.now

    def transfer():
        resident = gpu.hold(held, priority=1)
        yield resident.done
        if release_at is not None:
            yield env.timeout(release_at)
            gpu.release(resident)

    if held:
        env.process(transfer())
    for number, (at, *kernel) in enumerate(launches):
        env.process(launch(number, at, *kernel))
    env.run()
    return [found[number] for number in range(len(launches))], gpu


SPLIT = partial(Gpu, sms=10, hbm=100.0, context_sms=2)


def test_a_green_context_keeps_its_sms_from_other_kernels_at_all_times():
    """8 s of 10 SMs on 8, with nothing beside it; two of ten CTAs in a second wave."""
    assert ends((0.0, refilling(8.0)), gpu_of=SPLIT)[0] == [10.0]
    assert ends((0.0, persistent(3.0, 10)), gpu_of=SPLIT)[0] == [6.0]


def test_what_runs_in_a_green_context_takes_no_other_sms():
    """2 s of 10 SMs on the 2 of the context, and 8 s on the 8 others, side by side: 10 s each."""
    assert ends((0.0, refilling(2.0), 1), (0.0, refilling(8.0)), gpu_of=SPLIT)[0] == [10.0, 10.0]


def test_a_kernel_alone_takes_its_time_alone():
    assert ends((1.0, persistent(3.0, 8)))[0] == [4.0]


def test_a_persistent_kernel_runs_the_ctas_that_find_no_sm_in_a_further_wave():
    """Eight CTAs of 3 s start, two follow: 6 s."""
    assert ends((0.0, persistent(3.0, 10)), held=2)[0] == [6.0]


def test_a_persistent_kernel_launched_for_the_free_sms_is_not_slowed():
    assert ends((0.0, persistent(3.0, 8)), held=2)[0] == [3.0]


def test_a_refilling_kernel_slows_with_its_share_of_the_sms():
    """8 s of 10 SMs on 8: 10 s."""
    assert ends((0.0, refilling(8.0)), held=2)[0] == [10.0]


def test_a_refilling_kernel_takes_sms_as_soon_as_they_are_free():
    """On 8 SMs for 5 s it does 4 of its 8 s; on all 10 the rest takes 4 s."""
    assert ends((0.0, refilling(8.0)), held=2, release_at=5.0)[0] == [9.0]


def test_a_launch_that_finds_no_sm_waits_for_the_one_before():
    assert ends((0.0, persistent(3.0, 10)), (1.0, persistent(2.0, 4)))[0] == [3.0, 5.0]


def test_waiting_ctas_go_before_later_kernels():
    """Six of ten CTAs start beside the four of another; its four free SMs go to the other four of
    the kernel that came first, so the last one waits for the six."""
    first, second, third = persistent(2.0, 4), persistent(5.0, 10), persistent(1.0, 2)
    assert ends((0.0, first), (0.5, second), (1.0, third))[0] == [2.0, 7.0, 6.5]


def test_a_higher_priority_takes_sms_when_short_ctas_end():
    """CTAs of 1 s end at 3 s for a kernel launched at 2 s, which takes 4 SMs until 5 s. The other
    does 3 of 10 s before, 1.2 s meanwhile, and the remaining 5.8 s on all SMs."""
    found, _ = ends((0.0, refilling(10.0, cta_seconds=1.0)), (2.0, persistent(2.0, 4), 1))
    assert found == pytest.approx([10.8, 5.0], rel=1e-12)


def test_a_higher_priority_stands_before_lower_ones_and_behind_its_own():
    """Six SMs until 2 s; four of the next kernel's six CTAs start beside them. The third kernel
    takes all six at 2 s, so that the other two CTAs start at 3 s."""
    first, second, third = persistent(2.0, 6), persistent(5.0, 6), persistent(1.0, 6)
    assert ends((0.0, first, 1), (0.5, second, 0), (1.0, third, 1))[0] == [2.0, 8.0, 3.0]


def test_short_ctas_end_once_for_a_kernel_however_often_sms_are_shared_anew(monkeypatch):
    """As before, with a third kernel at 2.5 s, which waits for an SM until 10.8 s."""
    handed, hand_over = [], Gpu._hand_over
    monkeypatch.setattr(
        Gpu, "_hand_over", lambda gpu, *of: handed.append(gpu.env.now) or hand_over(gpu, *of)
    )
    first, second = refilling(10.0, cta_seconds=1.0), persistent(2.0, 4)
    found, _ = ends((0.0, first), (2.0, second, 1), (2.5, persistent(1.0, 1)))
    assert found == pytest.approx([10.8, 5.0, 11.8], rel=1e-12)
    assert handed == [3.0]
    # A green context takes no SMs of others, which would be given back to them at once.
    handed.clear()
    kernels = (0.0, refilling(2.0), 1), (0.0, refilling(8.0, cta_seconds=1.0))
    assert ends(*kernels, (1.0, persistent(1.0, 1)), gpu_of=SPLIT)[0] == [10.0, 10.0, 11.0]
    assert handed == []


def test_a_kernel_of_few_ctas_takes_no_more_sms_when_others_leave_them():
    small = KernelLaunch(4.0, 4, persistent=False, hbm_bytes=0.0)
    assert ends((0.0, small), (1.0, persistent(1.0, 6)))[0] == [4.0, 2.0]


def test_a_kernel_that_ends_before_its_short_ctas_do_leaves_all_its_sms():
    """CTAs of 5 s would end at 7 s for a kernel launched at 2 s; it starts at 3 s."""
    found, _ = ends((0.0, refilling(3.0, cta_seconds=5.0)), (2.0, persistent(10.0, 4), 1))
    assert found == [3.0, 13.0]


def test_a_higher_priority_takes_no_more_sms_than_short_ctas_have():
    """Three, beside a transfer of 7: of seven CTAs of 2 s three start at 3 s, three at 5 s and one
    at 7 s. The other does 0.9 of 10 s before, 0.4 on two SMs from 7 s on and 8.7 on three."""
    found, _ = ends((0.0, refilling(10.0, cta_seconds=1.0)), (2.0, persistent(2.0, 7), 1), held=7)
    assert found == pytest.approx([9.0 + 8.7 / 0.3, 9.0], rel=1e-12)


@pytest.mark.parametrize(("left_s", "ended"), [(4.5e-10, True), (5.5e-10, False)])
def test_what_is_left_of_a_kernel_by_rounding_is_nothing(left_s, ended):
    """At 100 s, of a kernel of 100 s: 1e-12 of its time, and 4e-12 of the clock's."""
    env = simpy.Environment()
    gpu = TEN(env)
    done = gpu.run(persistent(100.0, 4))
    env.run(until=100.0 - left_s)
    gpu.settle()
    assert done.triggered is ended


def test_hbm_is_shared_max_min_fairly():
    """Both run 4 s alone, one at 90, one at 30 bytes/s: 70 and 30 are given. The second ends at
    4 s; the first has moved 280 of its 360 bytes and draws 90 for the last 80."""
    found, gpu = ends((0.0, persistent(4.0, 5, 360.0)), (0.0, persistent(4.0, 5, 120.0)))
    assert found == pytest.approx([4.0 + 80 / 90, 4.0], rel=1e-12)
    assert gpu.hbm_bytes == pytest.approx(480.0, rel=1e-12)
    assert gpu.oversubscribed_s == pytest.approx(4.0, rel=1e-12)
    # 60 and 40 bytes/s are all that there is, and no more.
    _, gpu = ends((0.0, persistent(4.0, 5, 240.0)), (0.0, persistent(4.0, 5, 160.0)))
    assert gpu.oversubscribed_s == 0.0


def test_a_kernel_alone_is_never_slowed_by_hbm():
    """Caches may give it more bytes than HBM has."""
    assert ends((0.0, persistent(2.0, 10, 900.0)))[0] == [2.0]


def test_a_transfer_draws_first():
    """60 bytes/s are left of 100 for a kernel that draws 80: 4 / 3 of its time."""
    env = simpy.Environment()
    gpu = TEN(env)
    gpu.draw(gpu.hold(2, priority=1), 40.0)
    env.run(until=gpu.run(persistent(3.0, 8, 240.0)))
    assert env.now == pytest.approx(4.0, rel=1e-12)


def test_what_slows_a_kernel_beside_a_transfer_beyond_sms_and_hbm_does_so_while_bytes_move():
    """For 3 s alone 1.5 times as long beside a transfer that moves bytes, not beside one that
    waits."""
    kernel = KernelLaunch(3.0, 8, persistent=True, hbm_bytes=0.0, beside_transfer=1.5)
    for drawn, end in ((10.0, 4.5), (0.0, 3.0)):
        env = simpy.Environment()
        gpu = TEN(env)
        gpu.draw(gpu.hold(2, priority=1), drawn)
        env.run(until=gpu.run(kernel))
        assert env.now == pytest.approx(end, rel=1e-12)


def test_without_contention_every_kernel_has_all_that_it_asks_for():
    free = partial(Gpu, sms=None, hbm=None)
    kernels = [(0.0, persistent(3.0, 10, 900.0)), (1.0, refilling(2.0, 900.0))]
    assert ends(*kernels, gpu_of=free)[0] == [3.0, 3.0]


def test_use_is_counted():
    """2 SMs for 4 s and 8 for 3 s; the second wave of 2 CTAs from 3 to 6 s."""
    _, gpu = ends((0.0, persistent(3.0, 10)), held=2, release_at=4.0)
    assert gpu.sm_seconds == pytest.approx(2 * 4 + 8 * 3 + 2 * 3, rel=1e-12)
    assert gpu.starved_s == pytest.approx(3.0, rel=1e-12)
    assert gpu.history[0] == (0.0, 10, 0.0)


def test_fair_shares_give_the_rest_to_those_that_want_more():
    assert fair_shares([10.0, 50.0, 60.0], 100.0, [1, 1, 1]) == [10.0, 45.0, 45.0]
    assert fair_shares([10.0, 50.0], 100.0, [1, 1]) == [10.0, 50.0]


def test_fair_shares_go_by_weight():
    """Of 132 the first could have 112 and the second 20; the first wants 100, so 32 are left."""
    assert fair_shares([200.0, 200.0], 132.0, [112, 20]) == [112.0, 20.0]
    assert fair_shares([100.0, 200.0], 132.0, [112, 20]) == [100.0, 32.0]


def test_a_kernel_that_hbm_binds_needs_no_more_sms_than_fill_it():
    """Six of ten SMs do: on eight it takes its time alone, on five 6/5 of it."""
    kernel = KernelLaunch(4.0, 10, persistent=False, hbm_bytes=0.0, enough_sms=6)
    assert ends((0.0, kernel), held=2)[0] == [4.0]
    assert ends((0.0, kernel), held=5)[0] == pytest.approx([4.8])


def test_hbm_goes_by_the_sms_that_kernels_hold():
    """A copy of 2 SMs draws 60 bytes/s alone and a kernel of short CTAs 90; of 100 both want more
    than their part, 20 and 80, until the copy of 120 bytes has 20 bytes/s for 6 s."""
    copy = persistent(2.0, 2, 120.0)
    other = KernelLaunch(10.0, 10, persistent=False, hbm_bytes=900.0, enough_sms=5)
    found, _ = ends((0.0, copy), (0.0, other))
    assert found[0] == pytest.approx(6.0)
    assert found[1] == pytest.approx(6.0 + (900 - 480) / 90)


@pytest.mark.parametrize(
    ("ctas", "copy_sms", "ratio"),
    [(132, 4, 2), (132, 20, 2), (124, 8, 1), (124, 20, 2), (112, 20, 1)],
)
def test_a_gemm_beside_a_copy_is_as_docs_events_predicts(ctas, copy_sms, ratio):
    whole = partial(Gpu, sms=132, hbm=3.35e12)
    gemm = KernelLaunch(1.7e-3, ctas, persistent=True, hbm_bytes=5e8)
    found, _ = ends((0.0, gemm), gpu_of=whole, held=copy_sms)
    assert found == pytest.approx([1.7e-3 * ratio], rel=1e-9)


@pytest.mark.parametrize("copy_sms", [4, 8, 20])
def test_short_ctas_beside_a_copy_are_as_docs_events_predicts(copy_sms):
    whole = partial(Gpu, sms=132, hbm=3.35e12)
    kernel = KernelLaunch(2e-4, 132, persistent=False, hbm_bytes=5.4e8)
    found, _ = ends((0.0, kernel), gpu_of=whole, held=copy_sms)
    assert found == pytest.approx([2e-4 * 132 / (132 - copy_sms)], rel=1e-9)


def test_a_copy_beside_a_kernel_that_fills_hbm_is_as_docs_events_predicts():
    """On 20 SMs it draws 1.8 TB/s alone and 20 of 132 parts of 3.9 beside the kernel: 3.05 times
    as long, while the kernel takes 132/112 of its time alone."""
    whole = partial(Gpu, sms=132, hbm=3.9e12)
    kernel = KernelLaunch(1e-3, 132, persistent=False, hbm_bytes=3.9e9, enough_sms=44)
    copy = KernelLaunch(1e-2, 20, persistent=True, hbm_bytes=1.8e10)
    assert ends((0.0, copy), (0.0, kernel), gpu_of=whole)[0][1] == pytest.approx(1e-3 * 132 / 112)
    long = KernelLaunch(1e-1, 132, persistent=False, hbm_bytes=3.9e11, enough_sms=44)
    slowed = 1.8 / (3.9 * 20 / 132)
    assert slowed == pytest.approx(3.05, abs=0.005)
    assert ends((0.0, copy), (0.0, long), gpu_of=whole)[0][0] == pytest.approx(1e-2 * slowed)
