"""The licence of a generator, from its README to the data card."""

import pytest

from genfl.data.cards import licence_line
from genfl.generators.licences import licence
from genfl.generators.registry import GENERATORS, LICENCE


@pytest.mark.parametrize(
    ("readme", "line"),
    [
        ("---\nlicense: mit\n---\n# A model", "mit"),
        (
            "---\ntags: [a]\nlicense: other\nlicense_name: sai-nc\nlicense_link: LICENSE.md\n---\n",
            "sai-nc, LICENSE.md",
        ),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("---\nlicense: |\n  two\n  lines\n---\n", "two lines"),
        (f"---\nlicense: {'x' * 999}\n---\n", "x" * 200),
        ("---\nlicense:\n---\n", None),
        ("# A model without metadata, license: mit", None),
        ("---\nlicense: [\n---\n", None),
    ],
)
def test_licence_line_reads_the_metadata(tmp_path, readme, line):
    (tmp_path / "README.md").write_text(readme)
    assert licence_line(tmp_path / "README.md") == line
    assert licence(str(tmp_path)) == (line or "unknown")


def test_licence_of_a_model_without_readme_is_unknown(tmp_path):
    assert licence(str(tmp_path)) == "unknown"
    assert licence("genfl-tests/absent") == "unknown"


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        ("image", {"model": "miniature", "steps": 2, "safety_checker": False}, "apache-2.0"),
        ("files", {"path": "FOLDER"}, "cc-by-4.0"),
        ("sound", {"model": "FOLDER", "steps": 2}, "cc-by-4.0"),
        ("speech", {"model": "FOLDER", "speakers": None}, "cc-by-4.0"),
        ("speech", {"model": "espeak", "language": "en"}, "GPL-3.0-or-later (espeak-ng)"),
        ("text", {"model": "FOLDER", "base_url": None}, "cc-by-4.0"),
        ("text", {"model": "m", "base_url": "http://h/v1"}, "unknown"),
    ],
)
def test_every_kind_says_its_licence(tmp_path, kind, options, line):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    filled = {name: str(tmp_path) if value == "FOLDER" else value for name, value in options.items()}
    assert GENERATORS[kind].described(filled)[LICENCE] == line


def test_a_users_own_kind_has_an_unknown_licence_unless_it_says_it():
    entry = GENERATORS["files"]._replace(facts=lambda options: {"generator": "mine"})
    assert entry.described({}) == {LICENCE: "unknown", "generator": "mine"}
    entry = entry._replace(facts=lambda options: {LICENCE: "mit"})
    assert entry.described({}) == {LICENCE: "mit"}
