"""The built-in data sets: the source, columns, class names and input format of each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from genfl.data.formats import InputFormat, PixelFormat
from genfl.data.sounds import LogMelFormat
from genfl.data.texts import TokenFormat

_NO_WORDS: Mapping[str, str] = MappingProxyType({})

Metric = Literal["accuracy", "macro_f1"]
"""The score that papers usually report of a data set, by its name in summaries."""


class DatasetRecipe(NamedTuple):
    """A description of a labelled data set, in a local copy or on the Hugging Face Hub.

    Attributes:
        summary: A description in one line.
        hub: The id on the Hub, where the data set is stored as Parquet; None for data that only users have.
        format: The arrays that examples are encoded as.
        input: The possible names of the column with the examples; copies differ.
        label: The possible names of the column with the classes.
        client_id: The column of client ids, if the data has natural clients.
        words: The names in prompts of classes whose own names are codes.
        without: The names of classes that are left out.
        metric: The score that is usually reported.
        verified: Whether genfl's tests have read a real copy.
        public: Whether anyone may see the examples.
        test_client_id: The client id whose examples are the test set if there is no test split; None for a
            fifth of each class.
        group: The column of groups, whose examples are never on both sides of a test split.
        folders: What the folders of files mean; see `genfl.data.levels.parse_levels`. None to tell it from
            their names.
    """

    summary: str
    hub: str | None
    format: InputFormat
    input: tuple[str, ...]
    label: tuple[str, ...] = ("label",)
    client_id: str | None = None
    words: Mapping[str, str] = _NO_WORDS
    without: tuple[str, ...] = ()
    metric: Metric = "accuracy"
    verified: bool = False
    public: bool = True
    test_client_id: str | None = None
    group: str | None = None
    folders: str | None = None


DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The label names of the digits 0 to 9."""

_DIGITS = {str(digit): name for digit, name in enumerate(DIGIT_NAMES)}
_EUROSAT = {  # names in the archive, and on the Hub if they differ
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
_CHESTS = {"NORMAL": "normal chest", "PNEUMONIA": "chest with pneumonia"}
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
"""Classes of recordings that hold no word, or any word; a synthesiser must not speak their names."""

_IMAGE = ("image",)
_TEXT = ("text",)
_AUDIO = ("audio",)

_PHOTOS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet, commonly used for photographs of any data set."""


def in_words(name: str, words: Mapping[str, str]) -> str:
    """Return the name of a class in prompts: its word, or else its name with spaces for underscores."""
    return words.get(name) or " ".join(name.replace("_", " ").split()) or name


RECIPES: dict[str, DatasetRecipe] = {
    "cifar10": DatasetRecipe(
        "CIFAR-10: 60,000 photos of ten kinds of animals and vehicles, RGB 32×32",
        "uoft-cs/cifar10",
        PixelFormat((32, 32), 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("img", "image"),
        verified=True,
    ),
    "cifar100": DatasetRecipe(
        "CIFAR-100: 60,000 photos of a hundred kinds of things, RGB 32×32",
        "uoft-cs/cifar100",
        PixelFormat((32, 32), 3, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("img", "image"),
        label=("fine_label", "label"),
    ),
    "flowers102": DatasetRecipe(
        "Oxford Flowers: 8,189 photos of 102 flowers, RGB, at 64×64",
        "Donghyun99/Oxford-Flower-102",
        PixelFormat((64, 64), 3, *_PHOTOS),
        _IMAGE,
    ),
    "eurosat": DatasetRecipe(
        "EuroSAT: 27,000 satellite images of ten uses of land, RGB 64×64",
        "blanchon/EuroSAT_RGB",
        PixelFormat((64, 64), 3, (0.3444, 0.3803, 0.4078), (0.2037, 0.1366, 0.1148)),
        _IMAGE,
        words=_EUROSAT,
        verified=True,
    ),
    "ham10000": DatasetRecipe(
        # Most test images of the Hub's copy are in its training set, too. They are left out of it.
        "HAM10000: 10,015 images of seven kinds of skin lesions, RGB, at 64×64, by lesion",
        "marmal88/skin_cancer",
        PixelFormat((64, 64), 3, *_PHOTOS),
        _IMAGE,
        label=("dx", "label"),
        words=_LESIONS,
        metric="macro_f1",
        group="lesion_id",
    ),
    "pacs": DatasetRecipe(
        "PACS: 9,991 photos, paintings, cartoons and sketches of seven things, RGB, at 64×64",
        "flwrlabs/pacs",
        PixelFormat((64, 64), 3, (0.7608, 0.7420, 0.7134), (0.2938, 0.3038, 0.3316)),
        _IMAGE,
        client_id="domain",
        verified=True,
    ),
    "vlcs": DatasetRecipe(
        "VLCS: 10,729 photos of five things from four collections, RGB, at 64×64",
        None,
        PixelFormat((64, 64), 3, *_PHOTOS),
        _IMAGE,
        client_id="domain",
        folders="domain/class",
    ),
    "chest_xray": DatasetRecipe(
        "Chest X-rays: 5,856 images, normal or with pneumonia, grey, at 64×64",
        "hf-vision/chest-xray-pneumonia",
        PixelFormat((64, 64), 1, (0.449,), (0.226,)),
        _IMAGE,
        words=_CHESTS,
        metric="macro_f1",
    ),
    "food101": DatasetRecipe(
        "Food-101: 101,000 photos of 101 dishes, RGB, at 64×64",
        "ethz/food101",
        PixelFormat((64, 64), 3, *_PHOTOS),
        _IMAGE,
    ),
    "mnist": DatasetRecipe(
        "MNIST: 70,000 handwritten digits, grey 28×28",
        "ylecun/mnist",
        PixelFormat((28, 28), 1, (0.1307,), (0.3081,)),
        _IMAGE,
        words=_DIGITS,
        verified=True,
    ),
    "fashion_mnist": DatasetRecipe(
        "Fashion-MNIST: 70,000 pictures of ten kinds of clothes, grey 28×28",
        "zalando-datasets/fashion_mnist",
        PixelFormat((28, 28), 1, (0.2860,), (0.3530,)),
        _IMAGE,
        words=_CLOTHES,
    ),
    "images": DatasetRecipe(
        "Your own images: a folder of Parquet files, or one folder of image files for each class",
        None,
        PixelFormat(None, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        _IMAGE,
        verified=True,
        public=False,
    ),
    "speech_commands": DatasetRecipe(
        "Speech Commands v2: 105,829 recordings of 35 words by 2,618 people, 1 s",
        "danjacobellis/speech_commands_v2",
        LogMelFormat(1.0),
        _AUDIO,
        client_id="speaker_id",
        words=NOT_WORDS,
    ),
    "speech_commands_v1": DatasetRecipe(
        "Speech Commands v1: 64,727 recordings of 30 words by 1,881 people, 1 s",
        None,
        LogMelFormat(1.0),
        _AUDIO,
        client_id="speaker_id",
        words=NOT_WORDS,
    ),
    "speech_commands_9": DatasetRecipe(
        "Speech Commands: 3,211 recordings of nine words by 170 people, 1 s",
        None,
        LogMelFormat(1.0),
        _AUDIO,
        client_id="speaker",
        verified=True,
    ),
    "spoken_digits": DatasetRecipe(
        "Free Spoken Digit Dataset: 3,000 recordings of the digits by six people, at 1 s",
        "mteb/free-spoken-digit-dataset",
        LogMelFormat(1.0),
        _AUDIO,
        client_id="speaker",
        words=_DIGITS,
        verified=True,
    ),
    "esc50": DatasetRecipe(
        "ESC-50: 2,000 recordings of 50 kinds of sounds around us, 5 s",
        "ashraq/esc50",
        LogMelFormat(5.0),
        _AUDIO,
        label=("category", "label"),
        client_id="fold",
        test_client_id="5",
    ),
    "esc10": DatasetRecipe(
        "ESC-10: 400 recordings of ten kinds of sounds around us, 5 s",
        None,
        LogMelFormat(5.0),
        _AUDIO,
        client_id="fold",
        verified=True,
        test_client_id="5",
    ),
    "sounds": DatasetRecipe(
        "Your own sounds: a folder of Parquet files, or one folder of sound files for each class",
        None,
        LogMelFormat(None),
        _AUDIO,
        verified=True,
        public=False,
    ),
    "ag_news": DatasetRecipe(
        "AG News: 127,600 news items on four topics, 96 tokens",
        "fancyzhx/ag_news",
        TokenFormat(96),
        _TEXT,
        words=_NEWS,
        verified=True,
    ),
    "sentiment140": DatasetRecipe(
        "Sentiment140: 1.6 million tweets, negative or positive, by user, 48 tokens",
        "stanfordnlp/sentiment140",
        TokenFormat(48),
        _TEXT,
        label=("sentiment", "label"),
        client_id="user",
        words=_SENTIMENTS,
        without=("2",),  # neutral, which only the test split has
    ),
    "yahoo_answers": DatasetRecipe(
        "Yahoo! Answers: 1.46 million questions on ten topics, with their best answers, 128 tokens",
        "community-datasets/yahoo_answers_topics",
        TokenFormat(128),
        ("question_title + question_content + best_answer", "question_title", "text"),
        label=("topic", "label"),
        words=_ANSWERS,
    ),
    "newsgroups20": DatasetRecipe(
        "20 Newsgroups (bydate): 18,846 posts to twenty newsgroups, by author, 256 tokens",
        None,
        TokenFormat(256),
        _TEXT,
        client_id="author",
        words=_NEWSGROUPS,
        verified=True,
    ),
    "airline_tweets": DatasetRecipe(
        "Twitter US Airline Sentiment: 14,482 tweets, negative, neutral or positive, by user, 48 tokens",
        None,
        TokenFormat(48),
        _TEXT,
        client_id="user",
        metric="macro_f1",
        verified=True,
    ),
    "texts": DatasetRecipe(
        "Your own texts: a folder of CSV, JSONL or Parquet files with columns text and label, 128 tokens",
        None,
        TokenFormat(128),
        _TEXT,
        verified=True,
        public=False,
    ),
}
