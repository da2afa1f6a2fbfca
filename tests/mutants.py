"""Break lines of the modules that decide numbers, one at a time: a test must fail for each.

    python tests/mutants.py [--seed 0] [--count 60] [--nearest] [MODULE ...]

Each mutant changes one operator, comparison, number or condition of one module, chosen by the seed
with every module in its turn, in a copy of the tree. The module's own tests run first, then the
goldens of shipped runs, then all tests of its folder; with --nearest the module's own tests alone.
A mutant that none of them notices is printed: a formula that no test holds.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("hardware_profiles", "reference_model", "simulator", "reports")
DECIDE = (
    "simulator/hardware/costs.py",
    "simulator/hardware/kernels/calibrated.py",
    "simulator/hardware/kernels/completed.py",
    "simulator/hardware/network/transfers.py",
    "simulator/workload/memory.py",
    "simulator/workload/serving_memory.py",
    "simulator/workload/context_parallel.py",
    "simulator/workload/skew.py",
    "simulator/execution/timeline.py",
    "simulator/execution/pipeline.py",
    "simulator/execution/draws.py",
    "simulator/execution/training_draws.py",
    "simulator/execution/serving_draws.py",
    "simulator/execution/pretraining.py",
    "simulator/execution/fleet/decode_batch.py",
    "simulator/execution/fleet/kv_cache.py",
    "simulator/execution/fleet/prefill_queue.py",
    "simulator/analysis/training_metrics.py",
    "simulator/analysis/serving_metrics.py",
    "simulator/analysis/pretraining_metrics.py",
)
"""Modules whose formulas decide the numbers."""
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
LONGEST_S = 900
"""Tests of a mutant that take longer count as failed: it made a loop endless."""


def places(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(number in the walk, what changes) of every node that can be broken."""
    messages = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.AnnAssign | ast.Assert)
        for inner in ast.walk(node)
    }
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in messages:
            continue
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield number, f"{type(node.op).__name__} -> {SWAPS[type(node.op)].__name__}"
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield number, f"{type(node.ops[0]).__name__} -> {SWAPS[type(node.ops[0])].__name__}"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("min", "max"):
            yield number, "min <-> max"
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value:
            yield number, f"{node.value} -> {node.value + 1}"


def broken(source: str, number: int) -> tuple[str, int]:
    """The source with one node broken, and the line it is on."""
    tree = ast.parse(source)
    node = list(ast.walk(tree))[number]
    match node:
        case ast.BinOp() | ast.BoolOp():
            node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
        case ast.Compare():
            node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[assignment]
        case ast.Call(func=ast.Name() as function):
            function.id = "min" if function.id == "max" else "max"
        case ast.Constant():
            node.value += 1
    return ast.unparse(tree), node.lineno


def noticed(copy: Path, module: str, *, nearest: bool) -> bool:
    """Whether a test fails: those of the module, then, if asked, the goldens and its folder's."""
    own = Path("tests") / Path(module).parent / f"test_{Path(module).name}"
    others = () if nearest else ("tests/test_goldens.py", str(own.parent))
    for tests in (str(own), *others):
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-x", tests],
                cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, timeout=LONGEST_S,
                capture_output=True, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return True
        if done.returncode != 0:
            return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--nearest", action="store_true", help="the module's own tests alone")
    parser.add_argument("modules", nargs="*", default=DECIDE)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    shuffled = []
    for module in options.modules:
        found = list(places(ast.parse((ROOT / module).read_text(encoding="utf-8"))))
        shuffled.append([(module, *place) for place in rng.sample(found, len(found))])
    in_turns = (place for turn in zip_longest(*shuffled) for place in turn if place)
    chosen = list(islice(in_turns, options.count))
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        copy.mkdir()
        for name in (*ROOMS, "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for position, (module, number, change) in enumerate(sorted(chosen), start=1):
            whole = (ROOT / module).read_text(encoding="utf-8")
            text, line = broken(whole, number)
            (copy / module).write_text(text, encoding="utf-8")
            alive = not noticed(copy, module, nearest=options.nearest)
            (copy / module).write_text(whole, encoding="utf-8")
            survivors += alive
            state = "SURVIVES" if alive else "noticed"
            print(f"{position}/{len(chosen)} {state} {module}:{line}: {change}", flush=True)
            if alive:
                print(f"    {whole.splitlines()[line - 1].strip()}", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survive")
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main())
