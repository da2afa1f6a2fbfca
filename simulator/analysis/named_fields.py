"""Say which names a field takes where what runs by a name stands in another room than the field."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from simulator.execution.traffic import FORMS
from simulator.scenario.describe import Field
from simulator.workload.sharding import OPTIMIZERS


def names_of_fields() -> dict[str, str]:
    """{path of a field: the names that it takes, in words}"""
    of_forms: dict[tuple[str, ...], list[str]] = {}
    for operation, forms in FORMS.items():
        of_forms.setdefault(tuple(forms), []).append(operation)
    said = "; ".join(
        f"{', '.join(sorted(of))}: {', '.join(forms)}" for forms, of in of_forms.items()
    )
    operations = ("collective.operation", "collective.beside.N", "events.beside.N")
    return {
        "training.optimizer.name": f"Known: {', '.join(OPTIMIZERS)}.",
        **dict.fromkeys((f"{each}.algorithm" for each in operations), f"Known of {said}."),
    }


def with_known_names(fields: Iterable[Field]) -> list[Field]:
    """The same fields; the meaning of one that takes a name ends with all that are known."""
    known = names_of_fields()
    return [
        replace(one, meaning=f"{one.meaning} {known[one.path]}") if one.path in known else one
        for one in fields
    ]
