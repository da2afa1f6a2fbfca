"""One name for one thing, a test for each module, and first lines that are sentences."""

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("simulator", "hardware_profiles", "reference_model", "reports")
MODULES = sorted(
    path.relative_to(ROOT)
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
    if path.name != "__init__.py"
)

COMMANDS = {"main", "add_commands"}
"""Every script has the one, every group of the reference model's commands the other."""


WITHOUT_A_NOUN = "Of|As|From|In|That|By|For|With|At|On|To|Over|Per|Beside|Until"
"""How lines begin that do not say what is of, from or in something."""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def public(tree: ast.Module | ast.ClassDef) -> list[ast.ClassDef | ast.FunctionDef]:
    return [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    ]


def test_no_public_name_is_defined_twice():
    homes = defaultdict(list)
    for path in MODULES:
        for node in public(tree_of(path)):
            if node.name not in COMMANDS:
                homes[node.name].append(str(path))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_no_alias_of_a_type_is_called_what_a_class_is():
    classes = {node.name: str(path) for path in MODULES for node in public(tree_of(path))}
    aliases = {
        name.id: str(path)
        for path in MODULES
        for node in tree_of(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for name in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
        if isinstance(name, ast.Name) and re.fullmatch(r"[A-Z]\w*[a-z]\w*", name.id)
    }
    assert {name: (aliases[name], classes[name]) for name in aliases.keys() & classes} == {}


def test_every_module_has_its_test_at_the_mirrored_path():
    bare = [
        str(path)
        for path in MODULES
        if not (ROOT / "tests" / path.parent / f"test_{path.name}").exists()
    ]
    assert bare == []


def test_only_the_hardware_room_writes_what_a_model_has_learned():
    """Its names end in "_": no caller makes a fitted model another one."""
    written = [
        f"{path}:{node.lineno}"
        for path in MODULES
        if path.parts[:2] != ("simulator", "hardware")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and re.fullmatch(r"[a-z].*[^_]_", node.attr)
    ]
    assert written == []


def test_no_module_is_longer_than_a_reader_keeps_in_mind():
    lines = {str(path): (ROOT / path).read_text(encoding="utf-8").count("\n") for path in MODULES}
    assert {path: count for path, count in lines.items() if count > 600} == {}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_first_lines_are_sentences(path):
    """None says what goes in and what comes out: that is what the signature is for."""
    first = (ast.get_docstring(tree_of(path)) or "").split("\n")[0]
    assert re.fullmatch(r"(dsv3sim|[A-Z0-9]).*[.:]", first), f"{path}: {first!r}"
    texts = {"the module": first}
    for node in public(tree_of(path)):
        members = public(node) if isinstance(node, ast.ClassDef) else []
        for of, name in ((node, ""), *((member, f".{member.name}") for member in members)):
            texts[node.name + name] = (ast.get_docstring(of) or "").split("\n")[0]
    telegraphic = {
        name: text
        for name, text in texts.items()
        if re.search(rf"\bin[,;] .*\bout\b\.?$|->|^(?!dsv3sim )[a-z]|^({WITHOUT_A_NOUN}) ", text)
    }
    assert telegraphic == {}
