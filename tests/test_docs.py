"""The documentation lists what exists: test files, shared fixtures, pages, modules."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTING = (ROOT / "docs" / "dev" / "testing.md").read_text(encoding="utf-8")
INTERNAL = (
    "genfl.cli",
    "genfl.catalogue",
    "genfl.options",
    "genfl.progress",
    "genfl.report.",
    "genfl.stages.",
)


def test_testing_page_lists_every_test_file():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
    listed = re.findall(r"^\| `(tests/(?:\w+/)*test_\w+\.py)` \|", TESTING, re.MULTILINE)
    assert sorted(listed) == sorted(files)


def test_testing_page_lists_every_shared_fixture():
    builders = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("conftest.py")]
    fixtures = re.findall(r"@pytest\.fixture[^\n]*\ndef ([a-z]\w*)", "\n".join(builders))
    assert "quadratics" in fixtures
    assert [name for name in fixtures if f"`{name}`" not in TESTING] == []


def test_navigation_lists_every_page():
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r":\s+([\w/-]+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(pages)


def test_reference_lists_every_module():
    source = ROOT / "src"
    files = [path.relative_to(source) for path in source.rglob("*.py")]
    packages = {".".join(path.parts[:-1]) for path in files if path.name == "__init__.py"}
    modules = {".".join(path.with_suffix("").parts) for path in files if not path.name.startswith("_")}
    public = {name for name in modules if not name.startswith(INTERNAL)}
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: (genfl[\w.]*)$", text, re.MULTILINE)
    assert sorted(set(listed) - packages) == sorted(public)
