"""ReplayJob: a recorded profile to run again, as a scenario file states it."""

from pydantic import PositiveFloat

from hardware_profiles.fields import Count, Profile, TimeValue


class ReplayJob(Profile):
    """A recorded profile, and what it is run again on; what is not given is as recorded.

    The scenario's ``gpu`` is the GPU to run on, its ``cluster`` the machine around it.
    """

    profile: str
    """Path of a Kineto profile, .json or .json.gz."""
    mapping: str | None = None
    """What the kernels are, shipped name or path; the one that names most of the kernel time where
    not given."""
    recorded_gpu: str | None = None
    """GPU of the recording, shipped name or path, where the profile names none."""
    host_speed: PositiveFloat = 1.0
    """CPU speed relative to the recorded host."""
    communication_sms: Count | None = None
    """SMs of dispatch and combine."""
    launch_latency: TimeValue | None = None
    """From the end of a launch call to the earliest start of its kernel; the mapping's where not
    given."""
    gap: TimeValue | None = None
    """Between a kernel and the next that waits for it on the GPU; the mapping's where not given."""
