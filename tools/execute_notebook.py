"""Execute a notebook's code cells in order, and store what they print and their last values.

    python tools/execute_notebook.py docs/tutorials/quickstart.ipynb

It needs no Jupyter. The cells run in this process, in a temporary folder.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def execute(code: str, scope: dict[str, Any]) -> tuple[str, Any]:
    """Run a cell, and return what it printed and the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, "cell", "exec"), scope)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), scope) if last else None
    return printed.getvalue(), value


def outputs(printed: str, value: Any, number: int) -> list[dict[str, Any]]:
    """Return a cell's outputs in the format of notebooks."""
    cells: list[dict[str, Any]] = []
    if printed:
        cells.append({"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)})
    if value is not None:
        shown = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_html_"):
            shown["text/html"] = value._repr_html_().splitlines(keepends=True)
        result = {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": shown}
        cells.append(result)
    return cells


def main(path: Path) -> None:
    """Execute a notebook and write it back."""
    path = path.resolve()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    scope: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                number += 1
                printed, value = execute("".join(cell["source"]), scope)
                cell["execution_count"], cell["outputs"] = number, outputs(printed, value, number)
        os.chdir(path.parent)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
