"""The pages of docs/ build as a site, and every link in them leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", ROOT / ".mkdocs.yml",
         "--site-dir", tmp_path / "site"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").exists()


def test_the_readme_leads_only_to_files_that_are_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 180
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert [target for target in targets if not (ROOT / target).exists()] == []
