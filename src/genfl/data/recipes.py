"""The built-in data sets: where each is, its columns, its classes in words, and its form."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from genfl.data.forms import Form, Pixels
from genfl.data.sounds import LogMel
from genfl.data.texts import Tokens

NOTHING: Mapping[str, str] = MappingProxyType({})

Metric = Literal["accuracy", "macro_f1"]


class Recipe(NamedTuple):
    """How a labelled data set is read, from a local copy or from the Hugging Face Hub.

    Attributes:
        summary: One line on what it is.
        hub: Its id on the Hub, where it is kept as Parquet; None for data that only its user has.
        form: What its examples are turned into.
        input: Names of the column with the examples; copies differ.
        label: Names of the column with the classes.
        key: The column that says whose an example is, where the data has clients of its own.
        words: What prompts call the classes whose own names are codes.
        without: The numbers of classes that are left out.
        metric: What is usually reported of it, as summaries call it.
        verified: Whether genfl's tests have read a real copy of it.
        public: Whether anyone may see its examples.
        test_key: Whose examples are the test set, where there is no test split; None for a fifth of all.
    """

    summary: str
    hub: str | None
    form: Form
    input: tuple[str, ...]
    label: tuple[str, ...] = ("label",)
    key: str | None = None
    words: Mapping[str, str] = NOTHING
    without: tuple[str, ...] = ()
    metric: Metric = "accuracy"
    verified: bool = False
    public: bool = True
    test_key: str | None = None


DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_DIGITS = {str(digit): name for digit, name in enumerate(DIGIT_NAMES)}
_EUROSAT = {  # the archive's names, and the Hub's where they differ
    "AnnualCrop": "annual crop",
    "Annual Crop": "annual crop",
    "Forest": "forest",
    "HerbaceousVegetation": "herbaceous vegetation",
    "Herbaceous Vegetation": "herbaceous vegetation",
    "Highway": "highway",
    "Industrial": "industrial buildings",
    "Industrial Buildings": "industrial buildings",
    "Pasture": "pasture",
    "PermanentCrop": "permanent crop",
    "Permanent Crop": "permanent crop",
    "Residential": "residential buildings",
    "Residential Buildings": "residential buildings",
    "River": "river",
    "SeaLake": "sea or lake",
}
_LESIONS = {
    "akiec": "actinic keratoses",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesions",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "melanocytic_Nevi": "melanocytic nevi",
    "nv": "melanocytic nevi",
    "vasc": "vascular lesions",
}
_NEWS = {
    "World": "world news",
    "Sports": "sports",
    "Business": "business",
    "Sci/Tech": "science and technology",
}
_SENTIMENTS = {"0": "negative", "4": "positive"}
_ANSWERS = {
    "Society & Culture": "society and culture",
    "Science & Mathematics": "science and mathematics",
    "Health": "health",
    "Education & Reference": "education and reference",
    "Computers & Internet": "computers and the internet",
    "Sports": "sports",
    "Business & Finance": "business and finance",
    "Entertainment & Music": "entertainment and music",
    "Family & Relationships": "family and relationships",
    "Politics & Government": "politics and government",
}
_NEWSGROUPS = {
    "alt.atheism": "atheism",
    "comp.graphics": "computer graphics",
    "comp.os.ms-windows.misc": "Microsoft Windows",
    "comp.sys.ibm.pc.hardware": "PC hardware",
    "comp.sys.mac.hardware": "Apple Macintosh hardware",
    "comp.windows.x": "the X Window System",
    "misc.forsale": "things for sale",
    "rec.autos": "cars",
    "rec.motorcycles": "motorcycles",
    "rec.sport.baseball": "baseball",
    "rec.sport.hockey": "ice hockey",
    "sci.crypt": "cryptography",
    "sci.electronics": "electronics",
    "sci.med": "medicine",
    "sci.space": "space flight and astronomy",
    "soc.religion.christian": "Christianity",
    "talk.politics.guns": "gun politics",
    "talk.politics.mideast": "Middle East politics",
    "talk.politics.misc": "politics in general",
    "talk.religion.misc": "religion in general",
}
_CLOTHES = {"T - shirt / top": "t-shirt", "T-shirt/top": "t-shirt"}

NOT_WORDS = {"_silence_": "silence", "_unknown_": "unknown"}
"""Classes of recordings of no word, or of any: to speak their names would be wrong."""

_IMAGE = ("image",)
_TEXT = ("text",)
_AUDIO = ("audio",)

_PHOTOS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of ImageNet, in use for photographs whatever the data set."""


def in_words(name: str, words: Mapping[str, str]) -> str:
    """Returns what prompts call a class: the word for its name, or the name with spaces for underscores."""
    return words.get(name, name.replace("_", " "))


RECIPES: dict[str, Recipe] = {
    "cifar10": Recipe(
        "CIFAR-10: 60,000 photos of ten kinds of animals and vehicles, RGB 32×32",
        "uoft-cs/cifar10",
        Pixels((32, 32), 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("img", "image"),
        verified=True,
    ),
    "cifar100": Recipe(
        "CIFAR-100: 60,000 photos of a hundred kinds of things, RGB 32×32",
        "uoft-cs/cifar100",
        Pixels((32, 32), 3, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("img", "image"),
        label=("fine_label", "label"),
    ),
    "flowers102": Recipe(
        "Oxford Flowers: 8,189 photos of 102 flowers, RGB, at 64×64",
        "Donghyun99/Oxford-Flower-102",
        Pixels((64, 64), 3, *_PHOTOS),
        _IMAGE,
    ),
    "eurosat": Recipe(
        "EuroSAT: 27,000 satellite images of ten uses of land, RGB 64×64",
        "blanchon/EuroSAT_RGB",
        Pixels((64, 64), 3, (0.3444, 0.3803, 0.4078), (0.2037, 0.1366, 0.1148)),
        _IMAGE,
        words=_EUROSAT,
        verified=True,
    ),
    "ham10000": Recipe(
        # most test images of the Hub's copy are in its training set, too
        "HAM10000: 10,015 images of seven kinds of skin lesions, RGB, at 64×64; the Hub's splits overlap",
        "marmal88/skin_cancer",
        Pixels((64, 64), 3, *_PHOTOS),
        _IMAGE,
        label=("dx", "label"),
        words=_LESIONS,
        metric="macro_f1",
    ),
    "pacs": Recipe(
        "PACS: 9,991 photos, paintings, cartoons and sketches of seven things, RGB, at 64×64",
        "flwrlabs/pacs",
        Pixels((64, 64), 3, (0.7608, 0.7420, 0.7134), (0.2938, 0.3038, 0.3316)),
        _IMAGE,
        key="domain",
        verified=True,
    ),
    "vlcs": Recipe(
        "VLCS: 10,729 photos of five things from four collections, RGB, at 64×64",
        None,
        Pixels((64, 64), 3, *_PHOTOS),
        _IMAGE,
        key="domain",
    ),
    "food101": Recipe(
        "Food-101: 101,000 photos of 101 dishes, RGB, at 64×64",
        "ethz/food101",
        Pixels((64, 64), 3, *_PHOTOS),
        _IMAGE,
    ),
    "mnist": Recipe(
        "MNIST: 70,000 handwritten digits, grey 28×28",
        "ylecun/mnist",
        Pixels((28, 28), 1, (0.1307,), (0.3081,)),
        _IMAGE,
        words=_DIGITS,
        verified=True,
    ),
    "fashion_mnist": Recipe(
        "Fashion-MNIST: 70,000 pictures of ten kinds of clothes, grey 28×28",
        "zalando-datasets/fashion_mnist",
        Pixels((28, 28), 1, (0.2860,), (0.3530,)),
        _IMAGE,
        words=_CLOTHES,
    ),
    "images": Recipe(
        "Your own images: a folder of Parquet files, or one folder of image files for each class",
        None,
        Pixels(None, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        _IMAGE,
        verified=True,
        public=False,
    ),
    "speech_commands": Recipe(
        "Speech Commands v2: 105,829 recordings of 35 words by 2,618 people, 1 s",
        "danjacobellis/speech_commands_v2",
        LogMel(1.0),
        _AUDIO,
        key="speaker_id",
        words=NOT_WORDS,
    ),
    "speech_commands_v1": Recipe(
        "Speech Commands v1: 64,727 recordings of 30 words by 1,881 people, 1 s",
        None,
        LogMel(1.0),
        _AUDIO,
        key="speaker_id",
        words=NOT_WORDS,
    ),
    "speech_commands_9": Recipe(
        "Speech Commands: 3,211 recordings of nine words by 170 people, 1 s",
        None,
        LogMel(1.0),
        _AUDIO,
        key="speaker",
        verified=True,
    ),
    "spoken_digits": Recipe(
        "Free Spoken Digit Dataset: 3,000 recordings of the digits by six people, at 1 s",
        "mteb/free-spoken-digit-dataset",
        LogMel(1.0),
        _AUDIO,
        key="speaker",
        words=_DIGITS,
        verified=True,
    ),
    "esc50": Recipe(
        "ESC-50: 2,000 recordings of 50 kinds of sounds around us, 5 s",
        "ashraq/esc50",
        LogMel(5.0),
        _AUDIO,
        label=("category", "label"),
        key="fold",
        test_key="5",
    ),
    "esc10": Recipe(
        "ESC-10: 400 recordings of ten kinds of sounds around us, 5 s",
        None,
        LogMel(5.0),
        _AUDIO,
        key="fold",
        verified=True,
        test_key="5",
    ),
    "sounds": Recipe(
        "Your own sounds: a folder of Parquet files, or one folder of sound files for each class",
        None,
        LogMel(None),
        _AUDIO,
        verified=True,
        public=False,
    ),
    "ag_news": Recipe(
        "AG News: 127,600 news items on four topics, 96 tokens",
        "fancyzhx/ag_news",
        Tokens(96),
        _TEXT,
        words=_NEWS,
        verified=True,
    ),
    "sentiment140": Recipe(
        "Sentiment140: 1.6 million tweets, negative or positive, by user, 48 tokens",
        "stanfordnlp/sentiment140",
        Tokens(48),
        _TEXT,
        label=("sentiment", "label"),
        key="user",
        words=_SENTIMENTS,
        without=("2",),  # neutral, which only the test split has
    ),
    "yahoo_answers": Recipe(
        "Yahoo! Answers: the titles of 1.46 million questions on ten topics, 32 tokens",
        "community-datasets/yahoo_answers_topics",
        Tokens(32),
        ("question_title", "text"),
        label=("topic", "label"),
        words=_ANSWERS,
    ),
    "newsgroups20": Recipe(
        "20 Newsgroups (bydate): 18,846 posts to twenty newsgroups, by author, 256 tokens",
        None,
        Tokens(256),
        _TEXT,
        key="author",
        words=_NEWSGROUPS,
        verified=True,
    ),
    "airline_tweets": Recipe(
        "Twitter US Airline Sentiment: 14,482 tweets, negative, neutral or positive, by user, 48 tokens",
        None,
        Tokens(48),
        _TEXT,
        key="user",
        metric="macro_f1",
        verified=True,
    ),
    "texts": Recipe(
        "Your own texts: a folder of CSV, JSONL or Parquet files with columns text and label, 128 tokens",
        None,
        Tokens(128),
        _TEXT,
        verified=True,
        public=False,
    ),
}
