"""Which folder may import which, read from the imports; and that a public name means one thing."""

from __future__ import annotations

import ast
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import genfl

ROOT = Path(genfl.__file__).parent

IN_EVERY_MODULE = {"log", "STAGE"}
"""Names that stand for the same thing in each module that has them: its logger, its stage."""


COPIED = {"genfl/deployment/_load.py", "genfl/deployment/_ranges.py"}
"""Files that are copied into exported models. No module imports them, so their names are their own."""


def modules() -> list[Path]:
    """All modules of the package."""
    paths = (path for path in ROOT.rglob("*.py"))
    return sorted(path for path in paths if path.relative_to(ROOT.parent).as_posix() not in COPIED)


def room(module: str) -> str:
    """The folder of a module below the package, or the module itself."""
    return ".".join(module.split(".")[1:2]) or "genfl"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imported(path: Path) -> list[str]:
    """The modules that a module imports, also inside functions, but not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    every: list[str] = []
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from genfl.stages import pretrain` may name a module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        every += [name for name in names if name.split(".")[0] == "genfl"]
    return every


def imports() -> dict[str, set[str]]:
    """For each folder, the other folders that it imports."""
    graph: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        own = room(name_of(path))
        if own in ("genfl", "api", "cli", "__main__"):
            continue  # the front door: everything is behind it
        graph[own] |= {room(name) for name in imported(path)} - {own, "genfl", "__version__"}
    return graph


def test_no_circle_between_folders():
    graph = imports()
    order: list[str] = []

    def visit(folder: str, above: tuple[str, ...]) -> None:
        assert folder not in above, " imports ".join([*above[above.index(folder) :], folder])
        if folder not in order:
            for below in sorted(graph.get(folder, ())):
                visit(below, (*above, folder))
            order.append(folder)

    for folder in sorted(graph):
        visit(folder, ())
    assert len(order) > 15


def test_folders_do_not_import_what_is_above_them():
    graph = imports()
    forbidden = {
        "report": {"stages", "engines", "algorithms", "pipeline"},
        "results": {"stages", "report", "pipeline"},
        "config": {"engines", "generators", "stages", "experiment"},
        "data": {"generators", "stages", "engines", "algorithms"},
        "llm": {"generators", "stages"},
        "algorithms": {"engines", "stages"},
        "models": {"learning", "algorithms", "engines", "stages"},
        "engines": {"stages", "config", "experiment"},
        "deployment": {"stages", "engines", "algorithms", "pipeline"},
        "privacy": {"stages", "engines", "cli", "pipeline"},
    }
    wrong = {folder: graph[folder] & above for folder, above in forbidden.items() if graph[folder] & above}
    assert not wrong


def test_only_the_door_of_the_fast_path_is_used():
    inside = {"genfl.engines.fast.recording", "genfl.engines.fast.rewrites", "genfl.engines.fast.vmap_layers"}
    wrong = [
        (name_of(path), name)
        for path in modules()
        if path.parent.name != "fast"
        for name in imported(path)
        if any(name == own or name.startswith(f"{own}.") for own in inside)
    ]
    assert not wrong


DELETING = {"unlink", "rmtree", "rmdir", "removedirs", "remove_tree"}


def test_only_storage_deletes_files():
    """So that nothing is deleted behind a link; see `genfl.storage.remove`."""
    calls = [
        (name_of(path), node.func.attr)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr in DELETING or ast.unparse(node.func) == "os.remove")
    ]
    assert {module for module, _ in calls} == {"genfl.storage"}


def public_names(path: Path) -> Iterator[str]:
    """The functions, classes and constants that a module defines for others."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                targets = [t.elts if isinstance(t, ast.Tuple) else [t] for t in targets]
                names = [t.id for t in itertools.chain(*targets) if isinstance(t, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                names = []
        yield from (name for name in names if not name.startswith("_"))


def test_a_public_name_is_defined_in_one_module():
    where = defaultdict(list)
    for path in modules():
        for name in sorted(set(public_names(path))):
            where[name].append(name_of(path))
    twice = {
        name: places
        for name, places in where.items()
        if len(places) > 1 and name not in IN_EVERY_MODULE and not name.startswith("__")
    }
    assert not twice
