"""How runs are shown: reports, tables, exports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulator.analysis.run import Run


def write_report(run: Run[Any], out: Path | str) -> Path:
    """Write the run directory of a run: its page, figures, tables, metrics and scenario.

    Args:
        out: directory to write, new or of an earlier run, which it replaces.

    Returns:
        The page.

    Raises:
        ValueError: the place holds something that no run wrote, or cannot be written.
    """
    from reports.jobs import JOB_REPORTS

    directory = Path(out)
    JOB_REPORTS[run.scenario.job_name]().write(run, run.to_json(), directory)
    return directory / "report.html"
