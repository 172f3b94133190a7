import pytest

from genfl.data.levels import LevelError, infer_levels, parse_levels


def folders(*paths):
    return [tuple(path.split("/")) if path else () for path in paths]


@pytest.mark.parametrize(
    ("paths", "levels"),
    [
        (["cat", "dog"], "class"),
        (["train/cat", "train/dog", "test/cat"], "split/class"),
        (["Training/cat", "Val/cat"], "split/class"),
        (["all/cat", "all/dog"], "*/class"),
        (["data/train/cat", "data/test/cat"], "*/split/class"),
        (["train/images/cat", "test/images/dog"], "split/*/class"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "class/split"),
        (["mnist-train/cat", "mnist-test/dog"], "split/class"),
        (["bus", "car", "train"], "class"),
        (["train station", "test tube"], "class"),
        (["train/cat", "train/dog", "test"], "split/class"),
        (["train/cat", "train/dog", "train", ""], "split/class"),
        (["cat", "cat", "dog", "dog/more"], "class"),
        (["train", "test"], "split"),
        (["", ""], ""),
    ],
)
def test_levels_are_inferred_from_folder_names(paths, levels):
    assert "/".join(infer_levels(folders(*paths))) == levels


@pytest.mark.parametrize(
    ("paths", "advice"),
    [
        (["cat/monday", "cat/friday", "dog/monday"], "class/*, */class or client/class"),
        (
            ["c0/train/cat", "c0/test/dog", "c1/train/cat"],
            "class/split/*, */split/class or client/split/class",
        ),
        (["train/a/cat", "train/b/cat", "train/b/dog"], "split/class/*, split/*/class or split/client/class"),
        (["train/cat", "test/cat", "more/cat"], "more beside the split test is not a split"),
    ],
)
def test_ambiguous_folders_are_rejected_with_every_reading(paths, advice):
    with pytest.raises(LevelError, match=advice.replace("*", r"\*")):
        infer_levels(folders(*paths))


def test_levels_of_a_config_are_parsed():
    assert parse_levels("split/client/class/**") == ("split", "client", "class", "**")
    for text, problem in (("klass", "not a level"), ("class/class", "twice"), ("**/class", "last")):
        with pytest.raises(ValueError, match=problem):
            parse_levels(text)
