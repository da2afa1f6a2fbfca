"""How a step runs as events, on devices that contend."""

from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, PositiveInt

from hardware_profiles.fields import BandwidthValue, Profile
from simulator.scenario.collective import Operation

Channel = Literal["sms", "hbm", "nvlink", "nic", "links", "skew"]
"""What ranks, kernels and transfers contend for, or differ in."""

CHANNELS: tuple[Channel, ...] = get_args(Channel)


def _channels(given: object) -> object:
    """YAML reads a bare `off` or `on` as a truth value."""
    words = {False: (), "off": (), True: CHANNELS, "on": CHANNELS}
    return words.get(given, given) if isinstance(given, bool | str) else given


MOST_WINDOW = 0.05


class ChannelInputs(Profile):
    """How normal dispatch and combine kernels send tokens; each channel has its own buffers.

    Defaults are DeepEP's for 64 GPUs (deep_ep/buffers/legacy.py, Config: tokens per RDMA chunk and
    per receiving RDMA buffer)."""

    chunk_tokens: PositiveInt = 8
    """Tokens that a channel sends to a node at once; the first of them fill the way."""
    buffer_tokens: PositiveInt = 128
    """Tokens that a node's buffer of a channel holds: where one is full, the channel's tokens wait,
    to whatever node they go."""


class EventsInputs(Profile):
    """What a step with `fidelity: events` runs with."""

    contention: Annotated[tuple[Channel, ...], BeforeValidator(_channels)] = CHANNELS
    """What contends: on, off, or a list of channels. Off: kernels and transfers take the timeline's
    times, on ranks that are alike."""
    of: Literal["pair", "step"] = "pair"
    """Of a training step: the profiled pair alone, or every distinct chunk and the schedule with
    their durations too."""
    ablation: bool = False
    """Whether to run once more for each channel, without it."""
    window: Annotated[float, Field(ge=0, le=MOST_WINDOW)] | None = None
    """Completions of flows closer than this share of the shortest transfer are one instant, so that
    each is at most so much late; 0 is exact. By default 0.2% up to 64 ranks, and beyond them as
    much more as a transfer has flows: 0.8% of 128 ranks, 5% from 320 on."""
    l2_and_power: Literal["none", "measured"] = "none"
    """Slow-down of tensor-core kernels beside a transfer that no device here explains: none, or the
    ratio that the calibration's rows hold."""
    sm_bandwidth: BandwidthValue = 90e9
    """Bytes/s over HBM that one SM moves by itself, both ways: own measurement of copies of 8 and
    20 SMs of an H200 (docs/events.md). Says how many SMs fill HBM."""
    partition: Literal["launch_width", "green_contexts"] = "launch_width"
    """How SMs are kept for communication. launch_width: products are launched for the others, and
    other kernels take what they find free. green_contexts: its stream has SMs of its own, at all
    times."""
    channel: ChannelInputs = ChannelInputs()
    """Of normal dispatch and combine kernels between nodes."""
    layers: PositiveInt = 2
    """Layers with experts of a serving step that run on all ranks, from its middle."""
    beside: tuple[Operation, ...] = ()
    """Traffic of other jobs on the same fabric while the ranks run."""
    failures: tuple[str, ...] = ()
    """What fails or becomes slow while they run: nic:node3/nic1@40ms,
    slow:node3/nic1/up=0.5@40ms."""

    def window_of(self, ranks: int) -> float:
        """The window of a group, as a share of its shortest transfer."""
        if self.window is not None:
            return self.window
        return min(0.002 * max(1.0, (ranks / 64) ** 2), MOST_WINDOW)
