"""Replays of profiles, for tests of what they give."""

from pathlib import Path

from simulator.analysis.profile_replay import Replay, replay_scenario, run_replay


def replay(profile: Path, *changes: str) -> Replay:
    """A profile's replay with what `changes` ("gpu=h200_sxm") make of it."""
    return run_replay(replay_scenario(profile, changes))
