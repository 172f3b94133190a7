"""The glossary names what exists, and defines each term once."""

import pkgutil
import re
from pathlib import Path

import pytest

GLOSSARY = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(genfl\.[\w.]+)`", GLOSSARY)))


@pytest.mark.parametrize("name", NAMES)
def test_glossary_names_exist(name):
    pkgutil.resolve_name(name)


def test_glossary_defines_each_term_once():
    glossary, _ = GLOSSARY.split("## Words of other libraries")
    rows = [line.split("|")[1:-1] for line in glossary.splitlines() if line.startswith("| ")]
    terms = [row[0].strip() for row in rows if row[0].strip() != "term"]
    assert len(terms) > 50
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in rows)
    assert sorted(terms) == sorted(set(terms))
