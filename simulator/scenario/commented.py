"""YAML with a comment behind its fields, for files that people go on from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml

from hardware_profiles.fields import Raw


def commented_yaml(raw: Raw, comments: Mapping[str, str]) -> str:
    """A mapping as YAML in its own order, blocks as blocks and lists on one line.

    Args:
        comments: {dotted path: what stands behind the field}; a path that the mapping does not have
            is left out.
    """
    return "\n".join(_lines(raw, "", comments)) + "\n"


def _lines(block: Raw, at: str, comments: Mapping[str, str]) -> list[str]:
    """Lines of a block; `at` is its path with a dot at the end, empty for the file."""
    depth = "  " * at.count(".")
    found = []
    for field, value in block.items():
        path = f"{at}{field}"
        comment = f"  # {comments[path]}" if path in comments else ""
        if isinstance(value, dict) and value:
            found.append(f"{depth}{on_one_line(field)}:{comment}")
            found += _lines(value, f"{path}.", comments)
        else:
            found.append(f"{depth}{on_one_line(field)}: {on_one_line(value)}{comment}")
    return found


def on_one_line(value: Any) -> str:
    """A value as YAML reads it back, in quotes where it needs them."""
    text = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
    # A plain value alone is a document that ends in a line of its own.
    return text.removesuffix("\n").removesuffix("\n...").strip()
