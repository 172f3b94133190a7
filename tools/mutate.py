"""Mutation testing of the algorithms: breaks their arithmetic one place at a time, and runs their tests.

    python tools/mutate.py [FILE ...] [--jobs N]

A mutant is one change in one file of src/genfl/algorithms: a sign turned, a term dropped, an operator, a
comparison or a number changed, a scale left out. It is killed when a test fails, and survives when all pass.
Survivors are printed with their line; either a test is missing, or the change changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from shutil import copytree

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "src" / "genfl" / "algorithms"
TESTS = ROOT / "tests" / "algorithms"
TIMEOUT = 300

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Add,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.GtE: ast.Lt,
}
TREES = {"add": "sub", "sub": "add"}


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Yield line, description and tree of every mutant of a module."""
    changed = copy.deepcopy(tree)
    for node, field, index in places(changed):
        old = getattr(node, field) if index is None else getattr(node, field)[index]
        for what, new in changes(old):
            put(node, field, index, new)
            yield old.lineno, f"{ast.unparse(old)}  ->  {what}", copy.deepcopy(changed)
            put(node, field, index, old)


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Yield where expressions are, but for annotations, defaults, docstrings and decorators."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments | ast.arg | ast.AnnAssign | ast.JoinedStr | ast.Raise):
            continue
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "defaults", "kw_defaults"):
                continue
            if isinstance(value, ast.expr):
                yield node, field, None
            elif isinstance(value, list):
                yield from ((node, field, i) for i, item in enumerate(value) if isinstance(item, ast.expr))


def changes(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield the ways an expression is broken."""
    made: list[ast.expr] = []
    match node:
        case ast.BinOp(left, op, right):
            if type(op) in SWAPS:
                made.append(ast.BinOp(left, SWAPS[type(op)](), right))  # type: ignore[arg-type]
            if isinstance(op, ast.Add | ast.Sub):
                made += [left, right]
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            made.append(operand)
        case ast.Compare(left, [op], comparators) if type(op) in SWAPS:
            made.append(ast.Compare(left, [SWAPS[type(op)]()], comparators))  # type: ignore[list-item]
        case ast.IfExp(_, body, orelse):
            made += [body, orelse]
        case ast.Constant(value) if isinstance(value, int | float) and not isinstance(value, bool):
            made.append(ast.Constant(value + 1))
        case ast.Call(ast.Attribute(ast.Name("trees"), name), args, _):
            if name in TREES and len(args) == 2:
                made.append(ast.Call(ast.Attribute(ast.Name("trees"), TREES[name]), args, []))
                made += args
            elif name == "scale":
                made.append(args[1])
        case ast.Call(ast.Attribute(value, name), [], []) if name in ("square", "sqrt", "mean", "exp", "log"):
            made.append(value)
        case ast.Call(ast.Attribute(ast.Name("torch"), "relu" | "sign" as name), [argument], []):
            made.append(argument)
    for new in made:
        yield ast.unparse(new), ast.copy_location(new, node)


def put(node: ast.AST, field: str, index: int | None, new: ast.expr) -> None:
    """Replace an expression."""
    if index is None:
        setattr(node, field, new)
    else:
        getattr(node, field)[index] = new


def survives(file: Path, source: str) -> bool:
    """Say whether tests pass with a file replaced: those named after it first, then the rest."""
    named = [str(path) for path in sorted(TESTS.glob("test_*.py")) if file.stem in path.read_text("utf-8")]
    tests = named or [str(TESTS)]
    with tempfile.TemporaryDirectory() as folder:
        copytree(ROOT / "src", Path(folder) / "src", ignore=lambda d, names: {"miniature", "__pycache__"})
        (Path(folder) / file.relative_to(ROOT)).write_text(source, encoding="utf-8")
        return all(passes(folder, [*tests, *selection]) for selection in (["-k", file.stem], []))


def passes(folder: str, arguments: list[str]) -> bool:
    """Run pytest on the package in a folder; a run that hangs does not pass."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(folder) / "src"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode == 3 or done.returncode > 5:
        raise RuntimeError(done.stdout.decode()[-2000:])
    return done.returncode in (0, 5)  # 5: no test has that name


def main() -> None:
    """Run the mutants of the files named, or of all, and prints a table."""
    parser = argparse.ArgumentParser(description="Mutation testing of src/genfl/algorithms.")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    for file in [path.resolve() for path in chosen.files] or sorted(FOLDER.glob("*.py")):
        found = list(mutants(ast.parse(file.read_text(encoding="utf-8"))))
        sources = [ast.unparse(tree) for _, _, tree in found]
        with ThreadPoolExecutor(chosen.jobs) as pool:
            alive = list(pool.map(partial(survives, file), sources))
        print(f"{file.name}: {len(found)} mutants, {sum(alive)} survived", flush=True)
        for (line, what, _), survived in zip(found, alive, strict=True):
            if survived:
                print(f"  line {line}: {what}", flush=True)


if __name__ == "__main__":
    main()
