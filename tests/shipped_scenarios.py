"""Names of shipped scenarios by their job, from their text alone: collecting tests loads none."""

import re
from pathlib import Path

import simulator.scenario

FOLDER = Path(simulator.scenario.__file__).parent / "shipped"


def with_job(job: str) -> list[str]:
    """Names of the scenarios that hold a job of this name, in the order of the alphabet."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.yaml"))}
    return [name for name, text in texts.items() if re.search(f"^{job}:", text, re.MULTILINE)]
