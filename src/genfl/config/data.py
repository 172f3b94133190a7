"""The sections of the private data and its labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from genfl.config.section import Section
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
        description="iid: all alike. dirichlet: every label is dealt out in Dirichlet(alpha) shares. shards:"
        " every client gets pieces of the data sorted by label. quantity: labels alike, sizes in"
        " Dirichlet(alpha) shares. natural: the clients the data has of its own. domain: a client holds data"
        " of one domain, such as PACS's sketches.",
    )
    clients: int = Field(
        20,
        ge=2,
        le=65_537,
        description="Number of clients; not needed for the kinds natural and domain, where the data says it.",
    )
    alpha: float = Field(0.1, gt=0, description="Dirichlet concentration: smaller is less IID.")
    min_size: int = Field(
        1,
        ge=1,
        description="Samples every client has at least; of kind natural, those with fewer are left out.",
    )
    shards_per_client: int = Field(2, ge=1, description="Of kind shards: how many every client gets.")
    clients_per_domain: int = Field(5, ge=1, description="Of kind domain: how many share a domain's data.")
    within: Within = Field("iid", description="Of kind domain: how a domain is split over its clients.")
    test: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of every client's own samples, rounded down, that it holds back from training and"
        " tests the final models on.",
    )
    samples: int | None = Field(
        None,
        ge=1,
        description="Training samples that are split: drawn at random, classes as frequent as in all of them,"
        " the same for every seed. Without it, all are.",
    )

    @property
    def known(self) -> int | None:
        """The number of clients; None where the data has yet to say it."""
        return None if self.kind in OWN and "clients" not in self.model_fields_set else self.clients


class Data(Section):
    """The private data."""

    name: str = Field(
        description="A name of `genfl list datasets`; images, sounds and texts are data of your own."
    )
    path: str | None = Field(
        None,
        description="A folder with a copy: Parquet files, CSV or JSONL files of texts, one folder of files"
        " for each class, or what save_to_disk wrote; or hf://datasets/owner/name. Without it, the recipe's"
        " own comes from the Hub.",
    )
    input: str | None = Field(None, description="The column of the inputs, where it has another name.")
    label: str | None = Field(None, description="The column of the classes, where it has another name.")
    client_id: str | None = Field(
        None, description="The column of client ids, for the partitions natural and domain."
    )
    size: Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None = Field(
        None, description="Height and width that images are resized to."
    )
    channels: Literal[1, 3] | None = Field(None, description="1 for grey, 3 for RGB images.")
    length: int | None = Field(
        None, ge=1, le=4096, description="Tokens that texts are cut to, or filled up to with padding."
    )
    tokenizer: str | None = Field(
        None,
        min_length=1,
        description="What splits texts into tokens: hashed (words, by a hash), generated (the words of the"
        " run's generated texts, and no others), a tokenizer.json, a folder with one, or a Hugging Face id.",
    )
    seconds: float | None = Field(
        None, ge=0.1, le=60, description="How long sounds are: longer ones are cut, shorter ones filled up."
    )
    partition: Partition = Partition()

    def options(self) -> dict[str, Any]:
        """Return the options of `genfl.data.sources.read_dataset`: all but the name and the split."""
        given = self.model_dump(exclude={"name", "partition"}, exclude_none=True)
        if self.tokenizer == GENERATED_TOKENIZER:
            given["tokenizer"] = HASHED_TOKENIZER  # as long as there are no generated texts
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}

    def problem(self) -> str | None:
        """Say what is wrong: field and fix; None where there is nothing."""
        if self.name not in DATASETS:
            return f"name: there is no {self.name!r}; {suggest(self.name, list(DATASETS))}"
        recipe, given = DATASETS[self.name].recipe, self.options()
        if recipe is None:
            return f"{next(iter(given))}: {self.name} takes no options; leave it out" if given else None
        if not recipe.hub and "path" not in given:
            return f"path: {self.name} needs the folder it is in"
        for name in FORMAT_OPTIONS:
            if name in given and name not in recipe.format.options:
                return f"{name}: {self.name} has none, it is {recipe.format.modality}; leave it out"
        chosen = {name: given[name] for name in recipe.format.options if name in given}
        return replace(recipe.format, **chosen).missing()  # type: ignore[type-var]  # all are dataclasses


class Labels(Section):
    """Private label discovery."""

    max_bytes: int = Field(64, ge=1, le=1024, description="Longest label name, in UTF-8 bytes.")
    cells: int = Field(
        80, ge=8, le=2**20, description="Cells of the first table; doubled when it does not decode."
    )
    hashes: int = Field(4, ge=2, le=8, description="Cells each name is put in.")
    attempts: int = Field(8, ge=1, le=16, description="Tables tried before giving up.")
