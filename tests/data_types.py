"""Count the data types of the project: python tests/data_types.py [FOLDER]

Data classes, named tuples, pydantic models, typed dicts and enums of the rooms, by their names in
the source, so that the count of any commit needs no import.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("simulator", "reports", "reference_model", "hardware_profiles")
ROOTS = {"BaseModel", "NamedTuple", "TypedDict", "Enum", "StrEnum", "IntEnum", "Flag"}


def data_types(root: Path) -> list[str]:
    """Each data type as "module: name"."""
    classes = [
        (node, str(path.relative_to(root)))
        for room in ROOMS
        for path in sorted((root / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    known = set(ROOTS)
    while True:
        found = [
            (node.name, module)
            for node, module in classes
            if any(_name(base) in known for base in node.bases)
            or any(_name(mark) == "dataclass" for mark in node.decorator_list)
        ]
        names = {name for name, _ in found}
        if names <= known:
            return sorted(f"{module}: {name}" for name, module in found)
        known |= names


def _name(node: ast.expr) -> str:
    """Of a base or a decorator, without its module and arguments."""
    if isinstance(node, ast.Call | ast.Subscript):
        return _name(node.func if isinstance(node, ast.Call) else node.value)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


if __name__ == "__main__":
    found = data_types(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    print("\n".join([*found, str(len(found))]))
