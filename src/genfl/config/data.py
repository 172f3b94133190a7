"""The sections of the private data and its labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from genfl.config.section import Section
from genfl.data.levels import parse_levels
from genfl.data.partition import OWN, PartitionKind, Within
from genfl.data.recipes import RECIPES
from genfl.data.sources import DATASETS
from genfl.data.texts import GENERATED_TOKENIZER, HASHED_TOKENIZER
from genfl.errors import suggest

Pixels = Annotated[int, Field(ge=1, le=1024)]

FORMAT_OPTIONS = list(dict.fromkeys(name for recipe in RECIPES.values() for name in recipe.format.options))
"""The fields of `Data` that are fields of an input format."""


class Partition(Section):
    """How the training data is split over clients."""

    kind: PartitionKind = Field(
        "dirichlet",
        description="iid: all clients are alike. dirichlet: the samples of each label are split in"
        " Dirichlet(alpha) shares. shards: every client gets pieces of the data sorted by label. quantity:"
        " the labels are alike, and the sizes are Dirichlet(alpha) shares. natural: the clients that the data"
        " names. domain: every client holds data of one domain, such as the sketches of PACS.",
    )
    clients: int = Field(
        20,
        ge=2,
        le=65_537,
        description="Number of clients. Not needed for the kinds natural and domain: the data says it. With"
        " kind natural, so many of the data's clients are drawn for each seed.",
    )
    alpha: float = Field(0.1, gt=0, description="Dirichlet concentration. Smaller is less IID.")
    min_size: int = Field(
        1,
        ge=1,
        description="Smallest number of samples of a client. With kind natural, clients with fewer samples"
        " are left out.",
    )
    shards_per_client: int = Field(2, ge=1, description="Kind shards: number of shards per client.")
    clients_per_domain: int = Field(5, ge=1, description="Kind domain: number of clients per domain.")
    within: Within = Field("iid", description="Kind domain: how a domain is split over its clients.")
    test: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of every client's samples that it holds back from training, rounded down. The"
        " final models are tested on them.",
    )
    samples: int | None = Field(
        None,
        ge=1,
        description="Number of training samples that are split. They are drawn at random, with the class"
        " frequencies of the whole set, and are the same for every seed. If not set, all samples are split.",
    )

    @property
    def known(self) -> int | None:
        """The number of clients; None if only the data says it."""
        return None if self.kind in OWN and "clients" not in self.model_fields_set else self.clients


class Data(Section):
    """The private data."""

    name: str = Field(
        description="A name of `genfl list datasets`. The names images, sounds and texts are for your own"
        " data."
    )
    path: str | None = Field(
        None,
        description="A folder with a copy of the data, or hf://datasets/owner/name. The folder holds Parquet"
        " files, CSV or JSONL files of texts, one folder of files for each class, or the output of"
        " save_to_disk. If not set, the data set is loaded from the Hugging Face Hub.",
    )
    input: str | None = Field(
        None,
        description="The column of the inputs. Needed if it is not the usual name. Columns of texts are"
        " joined by ' + ', as in title + body.",
    )
    label: str | None = Field(
        None, description="The column of the classes. Needed if it is not the usual name."
    )
    client_id: str | None = Field(
        None, description="The column of client ids, for the partitions natural and domain."
    )
    folders: str | None = Field(
        None,
        description="What the folders above the files of an example mean, from the outermost to the"
        " innermost: split, client, domain, class, or * for none, as in client/class. A final ** stands for"
        " any number of *. If not set, it is told from the names of the folders.",
    )
    size: Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Height and width, in pixels, to which images are resized."
    )
    channels: Literal[1, 3] | None = Field(None, description="1 for grey images, 3 for RGB images.")
    length: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Length of texts in tokens. Longer texts are cut, shorter ones padded.",
    )
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="How texts are split into tokens: hashed (words, by a hash), generated (only the words of"
        " the run's generated texts), a tokenizer.json, a folder with one, or a Hugging Face id.",
    )
    seconds: float | None = Field(
        None,
        ge=0.1,
        le=60,
        description="Length of sounds in seconds. Longer ones are cut, shorter ones padded.",
    )
    partition: Partition = Field(Partition(), description="How the training data is split over clients.")
    group: str | None = Field(
        None,
        description="The column of groups, such as the lesion or the patient of a photo. Examples of a group"
        " are never on both sides of a test split. Needed if it is not the recipe's.",
    )
    test_from: Literal["split", "samples", "clients"] = Field(
        "split",
        description="Where the test set is from. split: the data's own test split, or a fifth of each class."
        " samples: a share of the samples of each client that the data names (LEAF). clients: all samples of"
        " a share of these clients (LEAF). The last two ignore the data's own test split.",
    )
    test_share: float = Field(
        0.1, gt=0, lt=1, description="The share of samples or clients that test_from draws."
    )

    def options(self) -> dict[str, Any]:
        """Return the options of `genfl.data.sources.read_dataset`: all fields but the name and the split."""
        drawn = self.test_from != "split"
        without = {"name", "partition", *(() if drawn else ("test_from", "test_share"))}
        options = self.model_dump(exclude=without, exclude_none=True)
        if drawn and self.partition.kind == "natural":
            options["least"] = self.partition.min_size
        if self.tokenizer == GENERATED_TOKENIZER:
            options["tokenizer"] = HASHED_TOKENIZER  # until texts have been generated
        return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}

    @property
    def least_in_train(self) -> int:
        """The smallest number of training samples of a client, after the test set was drawn from all."""
        if self.test_from == "samples" and self.partition.kind == "natural":
            return max(1, int((1 - self.test_share) * self.partition.min_size + 1e-9))
        return self.partition.min_size

    def problem(self) -> str | None:
        """Return what is wrong: field and fix. None if nothing is."""
        if self.name not in DATASETS:
            return f"name: there is no {self.name!r}; {suggest(self.name, list(DATASETS))}"
        recipe, options = DATASETS[self.name].recipe, self.options()
        if recipe is None:
            return f"{next(iter(options))}: {self.name} takes no options; leave it out" if options else None
        if not recipe.hub and "path" not in options:
            return f"path: required for {self.name}; give the folder with the data"
        for name in FORMAT_OPTIONS:
            if name in options and name not in recipe.format.options:
                return (
                    f"{name}: not an option of {self.name}, which is {recipe.format.modality}; leave it out"
                )
        if self.test_from == "split" and self.test_share != Data.model_fields["test_share"].default:
            return "test_share: only for test_from samples or clients; set test_from, or leave it out"
        if self.test_from != "split" and self.group is not None:
            return "group: test_from draws single samples or clients; leave one of them out"
        if self.test_from != "split" and recipe.group is not None:
            return (
                f"test_from: {self.test_from}, but it may put examples of one {recipe.group} on both sides;"
                f" use split for {self.name}"
            )
        if self.folders is not None:
            try:
                parse_levels(self.folders)
            except ValueError as error:
                return f"folders: {error}"
        chosen = {name: options[name] for name in recipe.format.options if name in options}
        return replace(recipe.format, **chosen).missing()  # type: ignore[type-var]  # all are dataclasses


class Public(Section):
    """Public data, which the server and the clients may have beside the private data.

    Its inputs are read in the format of the private data. Without a name and a path, it is the part of the
    private data's training set that `data.partition.samples` leaves out.
    """

    name: str | None = Field(
        None, description="A name of `genfl list datasets`. If not set, that of the private data."
    )
    path: str | None = Field(
        None,
        description="A folder with the public data, or hf://datasets/owner/name. If neither path nor name is"
        " set, the samples that data.partition.samples leaves out are the public data.",
    )
    input: str | None = Field(
        None, description="The column of the inputs. Needed if it is not the usual name."
    )
    label: str | None = Field(
        None, description="The column of the classes. Needed if it is not the usual name."
    )
    folders: str | None = Field(
        None, description="What the folders above the files of an example mean, as in data.folders."
    )
    samples: int | None = Field(
        None, ge=1, description="Number of public samples, drawn at random. If not set, all of them."
    )
    labelled: bool = Field(
        True,
        description="Whether methods may read the labels. Samples with labels that no client has are left out"
        " of pre-training and of the clients' content.",
    )

    @property
    def is_rest(self) -> bool:
        """Whether it is the part of the private data's training set that no client gets."""
        return self.name is None and self.path is None

    def options(self, data: Data) -> dict[str, Any]:
        """Return the options of `genfl.data.sources.read_dataset`: these fields, and the private format."""
        columns = self.model_dump(include={"path", "input", "label", "folders"}, exclude_none=True)
        return {name: value for name, value in data.options().items() if name in FORMAT_OPTIONS} | columns

    def problem(self, data: Data) -> str | None:
        """Return what is wrong beside the private data: field and fix. None if nothing is."""
        columns = self.model_dump(include={"input", "label", "folders"}, exclude_none=True)
        if self.is_rest:
            if data.partition.samples is None:
                return (
                    "path: required, as the clients hold all of the private data; set it, or set"
                    " data.partition.samples to leave a part of the private data to the public"
                )
            return f"{next(iter(columns))}: it needs a path; set path, or leave it out" if columns else None
        name = self.name or data.name
        if name not in DATASETS:
            return f"name: there is no {name!r}; {suggest(name, list(DATASETS))}"
        if name == data.name and self.path == data.path:
            return (
                f"{'path' if self.path else 'name'}: the same data as the private data; name other data, or"
                " leave name and path out and set data.partition.samples"
            )
        public, private = DATASETS[name], DATASETS.get(data.name)
        if private is not None and public.modality != private.modality:
            return f"name: {name} is {public.modality}, but {data.name} is {private.modality}; name another"
        if public.recipe is None:
            options = self.model_dump(include={"path"}, exclude_none=True) | columns
            return f"{next(iter(options))}: {name} takes no options; leave it out" if options else None
        if private is not None and private.recipe is None:
            return f"path: {data.name} has no format that files can be read in; leave name and path out"
        if not public.recipe.hub and self.path is None:
            return f"path: required for {name}; give the folder with the data"
        if self.folders is not None:
            try:
                parse_levels(self.folders)
            except ValueError as error:
                return f"folders: {error}"
        return None


class Audit(Section):
    """The search for near-duplicates between test and training examples, generated and public samples."""

    overlap: Literal["warn", "drop", "ignore"] = Field(
        "warn",
        description="What happens to generated and public samples that are near-duplicates of test examples."
        " warn: they are counted, shown, and kept. drop: no method trains on them. Samples that clients"
        " generate from real examples are neither counted nor dropped. ignore: nothing is compared.",
    )

    @property
    def drops(self) -> bool:
        """Whether near-duplicates of test examples are dropped."""
        return self.overlap == "drop"


class Labels(Section):
    """Private label discovery."""

    max_bytes: int = Field(64, ge=1, le=1024, description="Length of the longest label name, in UTF-8 bytes.")
    cells: int = Field(
        80,
        ge=8,
        le=2**20,
        description="Cells of the first table. The number doubles if the table does not decode.",
    )
    hashes: int = Field(4, ge=2, le=8, description="Number of cells that each name is added to.")
    attempts: int = Field(8, ge=1, le=16, description="Number of tables tried before the stage fails.")
    min_holders: int = Field(
        1,
        ge=1,
        description="Fewest clients that must hold a label name. Names of fewer are left out, with their"
        " examples: they are in no file, log or report, and the server does not learn them.",
    )
    bins: int = Field(
        4096,
        ge=16,
        le=2**20,
        description="With min_holders: hashed bins in each of 4 rows, in which clients are counted. A name of"
        " too few holders gets into the table with a probability of at most (other names / bins)^4.",
    )
    count_epsilon: float | None = Field(
        None,
        ge=1e-3,
        le=100,
        description="The bound ε on what the published numbers of holders tell of one client, all together."
        " The server adds discrete Laplace noise to them. Names stay exact. If not set, numbers are exact,"
        " too.",
    )
