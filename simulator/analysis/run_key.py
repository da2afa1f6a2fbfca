"""A digest of everything a run depends on; runs with equal digests have equal metrics.

That is the resolved scenario, the content of every file that it names (tables of a calibration,
requests, popularity of experts, scenarios of a fleet's steps and what those name), and this
program: its version and the content of its modules and shipped data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hardware_profiles
import reference_model
import simulator
from hardware_profiles.fields import read_yaml
from hardware_profiles.whole_files import real_path
from simulator.scenario.files import Scenario

_PARTS = (hardware_profiles, reference_model, simulator)
_COUNTED = frozenset({".py", ".yaml", ".csv", ".json", ".jsonl"})


def run_key(scenario: Scenario) -> str:
    """The digest of a scenario's run, 16 hexadecimal digits."""
    digest = hashlib.sha256(program_digest().encode())
    # As Python writes plain values, twenty times as fast as YAML: a sweep has many points.
    digest.update(repr(scenario.resolved).encode())
    here = frozenset(os.listdir())
    for path in sorted(_files(scenario.resolved, here, frozenset())):
        digest.update(str(path).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def program_digest() -> str:
    """A digest of this program: version, modules, profiles, tables and traces."""
    digest = hashlib.sha256(version("dsv3sim").encode())
    for part in _PARTS:
        folder = Path(str(part.__file__)).parent
        for path in sorted(folder.rglob("*")):
            if path.suffix in _COUNTED:
                digest.update(path.relative_to(folder).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _files(value: Any, here: frozenset[str], seen: frozenset[Path]) -> Iterator[Path]:
    """Files that texts of a resolved scenario name, and those that YAML files among them name.

    Args:
        here: all that lies in the working directory; a text without a slash names nothing else.
    """
    for text in _texts(value):
        if ("/" in text or text in here) and os.path.isfile(text):
            path = real_path(Path(text))
            if path not in seen:
                yield path
                if path.suffix in (".yaml", ".yml"):
                    yield from _files(read_yaml(path, where=text), here, seen | {path})


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested mappings and lists."""
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            waiting.extend(entry.values())
        elif isinstance(entry, list | tuple):
            waiting.extend(entry)
