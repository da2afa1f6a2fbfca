"""What a profiler recorded of one GPU and its host threads, in seconds.

Names of categories and of element types are those of Kineto profiles (kineto.py reads them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Bytes, Seconds
from reference_model.formats import BITS
from reference_model.trace import Operator

KERNEL_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
CALL_CATEGORIES = ("cuda_runtime", "cuda_driver")
SPAN_CATEGORIES = ("cpu_op", "user_annotation")

ELEMENT_TYPES = {
    "c10::BFloat16": "bfloat16",
    "c10::Half": "float16",
    "float": "float32",
    "c10::Float8_e4m3fn": "fp8_e4m3",
    "int": "int32",
    "long int": "int64",
}
"""{name of a type in a profile: element type of operators}"""
WIDTHS = {name: BITS[dtype] // 8 for name, dtype in ELEMENT_TYPES.items()} | {
    "double": 8,
    "short int": 2,
    "c10::Float8_e5m2": 1,
    "signed char": 1,
    "unsigned char": 1,
    "bool": 1,
}
"""{name of a type in a profile: bytes of an element}"""
_LIST = "TensorList"
_NO_TENSORS = frozenset({"", "Scalar", "ScalarList"})

_NAMED = 5
"""Events that a message names before it only counts."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Events of one trace that could not be used, and why."""

    what: str
    events: tuple[int, ...]
    """Positions in the file's list of events, from 0."""
    loses_kernels: bool
    """Whether a kernel's time or launch is unknown for it."""

    def __str__(self) -> str:
        named = ", ".join(str(event) for event in self.events[:_NAMED])
        more = f" and {len(self.events) - _NAMED} more" if len(self.events) > _NAMED else ""
        return f"{len(self.events)} x {self.what}: event {named}{more}"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One thing that ran on the GPU: a kernel, a copy or a fill. Its start is not kept here."""

    name: str
    category: str
    """One of KERNEL_CATEGORIES."""
    stream: int
    seconds: Seconds
    correlation: int | None
    """Joins it to the call that launched it."""
    grid: tuple[int, int, int]
    """Thread blocks; (0, 0, 0) for copies and fills."""
    threads: int
    """Threads of a block; 0 for copies and fills."""
    registers: int
    """Registers of a thread; 0 where the profile has none."""
    shared_memory: int
    """Bytes of a block."""
    moved: Bytes
    """Bytes of a copy or fill; 0 for kernels."""
    event: int
    operator: str = ""
    """Operator that the profile itself names for it, as those of the reference model do."""
    external: int | None = None
    """Id of the host operator that launched it, where the profile says."""

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, slots=True)
class HostCall:
    """One CUDA call of one host thread."""

    name: str
    thread: str
    start_s: Seconds
    seconds: Seconds
    correlation: int | None
    event: int

    @property
    def end_s(self) -> Seconds:
        return self.start_s + self.seconds


@dataclass(frozen=True, slots=True)
class HostInput:
    """A tensor that a host operator was given, or a list of them."""

    type_name: str
    """As the profile has it, such as "c10::BFloat16"; "TensorList" for a list."""
    shapes: tuple[tuple[int, ...], ...]
    """One for a tensor, those of all tensors of a list; of what is no tensor one of no extents."""

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor or a list of tensors whose shapes were recorded."""
        if self.type_name == _LIST:
            return self.shapes != ((),)
        return self.type_name not in _NO_TENSORS

    @property
    def elements(self) -> int:
        """Elements of all its tensors."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def width(self) -> int | None:
        """Bytes of an element; None where the profile does not say, as of lists."""
        return WIDTHS.get(self.type_name)


@dataclass(frozen=True, slots=True)
class HostSpan:
    """A host operator or a user annotation."""

    name: str
    category: str
    thread: str
    start_s: Seconds
    end_s: Seconds
    inputs: tuple[HostInput, ...]
    """Empty where the profile was recorded without shapes."""
    operator: Operator | None = None
    """What the profile itself says it is, as those of the reference model do."""
    external: int | None = None
    """Id that kernels launched by it name."""


@dataclass(frozen=True, slots=True)
class StreamWait:
    """A cudaStreamWaitEvent whose partners the profiler did record (category cuda_sync)."""

    correlation: int
    stream: int
    """Stream that waits."""
    waits_on: int
    """Stream that it waits for."""
    record: int
    """Correlation id of the cudaEventRecord: work launched there before it is waited for."""


@dataclass(frozen=True, slots=True)
class SmLimits:
    """What one SM has room for."""

    threads: int
    registers: int
    shared_memory: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded profile of one GPU and its host threads."""

    path: str
    devices: tuple[str, ...]
    """Names of the GPUs that the file describes, each once; empty where it describes none."""
    sms: int | None
    sm_limits: SmLimits | None
    kernels: tuple[Kernel, ...]
    """In recorded order of start."""
    kernel_start_s: NDArray[np.float64]
    """[kernels], recorded start since the first kernel. For measured figures only: a replay never
    reads it."""
    first_kernel_s: Seconds
    """Start of the first kernel on the clock of the calls; for measured figures only, likewise."""
    calls: tuple[HostCall, ...]
    """All threads, in order of start."""
    spans: tuple[HostSpan, ...]
    """In order of start, the enclosing before the enclosed."""
    stream_waits: tuple[StreamWait, ...]
    problems: tuple[Problem, ...]

    @property
    def measured_span_s(self) -> Seconds:
        ends = [s + k.seconds for s, k in zip(self.kernel_start_s, self.kernels, strict=True)]
        return float(max(ends, default=0.0))
