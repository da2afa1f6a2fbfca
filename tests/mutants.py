"""Break lines of the modules that decide numbers, one at a time: a test must fail for each.

    python tests/mutants.py [--seeds 0 1] [--count 60] [--nearest] [MODULE ...]

Each mutant changes one operator, comparison, number or condition of one module, chosen by the seed
with every module in its turn, in a copy of the tree. The module's own tests run first, which pass
as it is, the quickest of them before the others; then the goldens of shipped runs, then all tests
of its folder, unless --nearest leaves these out. A mutant that none of them notices is printed: a
formula that no test holds. Tests are forked of one process that has imported the libraries.
"""

import argparse
import ast
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice, zip_longest
from pathlib import Path
from zlib import crc32

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # to fork safely

import numpy as np  # noqa: F401
import pandas as pd  # noqa: F401
import pydantic  # noqa: F401
import pytest
import yaml  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("hardware_profiles", "reference_model", "simulator", "reports")
DECIDE = (
    "simulator/hardware/costs.py",
    "simulator/hardware/kernels/calibrated.py",
    "simulator/hardware/kernels/completed.py",
    "simulator/hardware/kernels/work_floor.py",
    "simulator/hardware/network/transfers.py",
    "simulator/hardware/network/collective_times.py",
    "simulator/workload/memory.py",
    "simulator/workload/serving_memory.py",
    "simulator/workload/sharding.py",
    "simulator/workload/state_tasks.py",
    "simulator/workload/context_parallel.py",
    "simulator/workload/skew.py",
    "simulator/execution/timeline.py",
    "simulator/execution/pipeline.py",
    "simulator/execution/optimizer.py",
    "simulator/execution/draws.py",
    "simulator/execution/training_draws.py",
    "simulator/execution/serving_blocks.py",
    "simulator/execution/serving_draws.py",
    "simulator/execution/pretraining.py",
    "simulator/execution/machine/gpu.py",
    "simulator/execution/fleet/decode_batch.py",
    "simulator/execution/fleet/kv_cache.py",
    "simulator/execution/fleet/prefill_queue.py",
    "simulator/execution/fleet/step_times.py",
    "simulator/analysis/training_metrics.py",
    "simulator/analysis/serving_metrics.py",
    "simulator/analysis/fleet_metrics.py",
    "simulator/analysis/pretraining_metrics.py",
    "simulator/analysis/system_metrics.py",
    "simulator/analysis/whole_runs.py",
    "simulator/analysis/plan/layer_room.py",
    "simulator/analysis/plan/layer_seconds.py",
    "simulator/analysis/plan/training_bounds.py",
    "simulator/analysis/plan/serving_bounds.py",
    "simulator/analysis/plan/serving_prices.py",
)
"""Modules whose formulas decide the numbers."""
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
LONGER = 5
"""Tests of a mutant that take so many times the CPU of the unbroken module's count as failed: it
made a loop endless."""
LONGEST_S = 900
"""Also in which tests of any kind are to end."""


def places(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(number in the walk, what changes) of every node that can be broken: none of a message, a
    type or a decorator, which keeps results and changes none."""
    nodes = list(ast.walk(tree))
    beside = [
        node
        for node in nodes
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.AnnAssign | ast.Assert)
    ]
    for node in nodes:
        beside += getattr(node, "decorator_list", ())
    left_alone = {id(inner) for node in beside for inner in ast.walk(node)}
    for number, node in enumerate(nodes):
        if id(node) in left_alone:
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


class QuickestFirst:
    """Runs tests in the order of what each took when all were run as they are, quickest first."""

    def __init__(self, kept: Path) -> None:
        """Args:
        kept: file of what each took, written by the first run.
        """
        self._kept = kept
        self._took: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        took = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        items.sort(key=lambda item: took.get(item.nodeid, 0.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._took[report.nodeid] += report.duration  # type: ignore[assignment]

    def pytest_sessionfinish(self) -> None:
        if not self._kept.exists():
            self._kept.write_text(json.dumps(self._took))


def passes(copy: Path, tests: str, cpu_s: int = LONGEST_S) -> bool:
    """Whether tests of the copy pass, in a process of its own, within some seconds of CPU."""
    child = os.fork()
    if child == 0:
        os.chdir(copy)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        sys.path[0] = str(copy)
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(copy.parent / "bytecode")
        os.environ |= {"PYTHONPATH": str(copy), "XDG_CACHE_HOME": str(copy.parent / "cache")}
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
        signal.alarm(LONGEST_S)
        order = QuickestFirst(copy.parent / f"{crc32(tests.encode())}.json")
        os._exit(int(pytest.main(["-q", "-x", tests], plugins=[order])))
    return os.waitpid(child, 0)[1] == 0


@cache
def cpu_of_passing(copy: Path, tests: str) -> int:
    """Seconds of CPU that tests take as they are.

    Raises ValueError where they fail, since nothing would follow from that with a mutant.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not passes(copy, tests):
        raise ValueError(f"{tests}: fail as they are")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) + 10


def noticed(copy: Path, module: str, text: str, *, nearest: bool) -> bool:
    """Whether a test fails where a module has this text: those of the module, then, if asked, the
    goldens and its folder's."""
    own = Path("tests") / Path(module).parent / f"test_{Path(module).name}"
    longest_s = LONGER * cpu_of_passing(copy, str(own))
    whole = (copy / module).read_text(encoding="utf-8")
    (copy / module).write_text(text, encoding="utf-8")
    # Bytecode is kept by the second and the size of its source: of each mutant another second.
    moment = crc32(text.encode())
    os.utime(copy / module, (moment, moment))
    try:
        if not passes(copy, str(own), longest_s):
            return True
        others = () if nearest else ("tests/test_goldens.py", str(own.parent))
        return not all(passes(copy, tests) for tests in others)
    finally:
        (copy / module).write_text(whole, encoding="utf-8")


def chosen(modules: list[str], seed: int, count: int) -> list[tuple[str, int, str]]:
    """(module, number in its walk, what changes) of mutants, every module in its turn."""
    rng = random.Random(seed)
    shuffled = []
    for module in modules:
        found = list(places(ast.parse((ROOT / module).read_text(encoding="utf-8"))))
        shuffled.append([(module, *place) for place in rng.sample(found, len(found))])
    in_turns = (place for turn in zip_longest(*shuffled) for place in turn if place)
    return list(islice(in_turns, count))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--count", type=int, default=60, help="of each seed")
    parser.add_argument("--nearest", action="store_true", help="the module's own tests alone")
    parser.add_argument("modules", nargs="*", default=DECIDE)
    options = parser.parse_args()
    every = {
        mutant: None
        for seed in options.seeds
        for mutant in chosen(options.modules, seed, options.count)
    }
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        copy.mkdir()
        for name in (*ROOMS, "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        for position, (module, number, change) in enumerate(sorted(every), start=1):
            whole = (ROOT / module).read_text(encoding="utf-8")
            text, line = broken(whole, number)
            try:
                alive = not noticed(copy, module, text, nearest=options.nearest)
            except ValueError as error:
                print(f"{position}/{len(every)} {error}", flush=True)
                survivors += 1
                continue
            survivors += alive
            state = "SURVIVES" if alive else "noticed"
            print(f"{position}/{len(every)} {state} {module}:{line}: {change}", flush=True)
            if alive:
                print(f"    {whole.splitlines()[line - 1].strip()}", flush=True)
    print(f"{len(every)} mutants, {survivors} survive")
    return survivors > 0


if __name__ == "__main__":
    sys.exit(main())
