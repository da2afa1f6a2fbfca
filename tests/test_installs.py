"""What make installs is the same everywhere: each package that it brings has one exact version."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = re.findall(
    r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE
)


def common(name):
    """A package's name as indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(texts, extras=("",)):
    """Names of what requirements bring in here, directly and by others."""
    found = {}
    waiting = [(Requirement(text), extras) for text in texts]
    while waiting:
        one, wanted = waiting.pop()
        if one.marker and not any(one.marker.evaluate({"extra": extra}) for extra in wanted):
            continue
        key = (common(one.name), tuple(sorted(one.extras)))
        if key in found:
            continue
        try:
            inner = distribution(one.name).requires or ()
        except PackageNotFoundError:
            continue  # of another platform, or not of this installation
        found[key] = [Requirement(text) for text in inner]
        waiting += [(more, ("", *one.extras)) for more in found[key]]
    return {name for name, _ in found}


def test_every_package_that_make_installs_is_pinned_exactly():
    texts = [*PROJECT["dependencies"]]
    for extra in PROJECT["optional-dependencies"].values():
        texts += extra
    pinned = {common(name) for name, _ in PINS}
    # An NVIDIA build of torch brings libraries that the CPU build does not have.
    bare = {name for name in needed(texts) - pinned if not name.startswith(("nvidia", "cuda"))}
    assert bare == set()
    assert "hatchling" in pinned  # what builds it


def test_pins_are_of_one_version_each_and_nothing_else_stands_there():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line and not line.startswith("#")]) == len(PINS)
    assert len({common(name) for name, _ in PINS}) == len(PINS)


def test_every_supported_python_is_named_and_tested():
    named = [
        text.rpartition(" :: ")[2] for text in PROJECT["classifiers"] if ":: Python ::" in text
    ]
    assert named == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11"
    assert f"for version in {' '.join(named)}; do" in (ROOT / ".ci" / "run").read_text()
