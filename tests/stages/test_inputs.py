"""Which stages must run again when a field of the config changes, and what stages may read."""

import functools
import json
import shutil
import typing
from string import Template
from typing import NamedTuple

import numpy as np
import pytest
import tokenizers
from PIL import Image
from pydantic import BaseModel
from support.opened import open_run

from genfl import config, pipeline
from genfl.config import Config, Section
from genfl.config.generation import GENERATOR_UNION, GeneratorSection
from genfl.config.section import Choice
from genfl.data.sources import DATASETS, DataEntry, LabelledExamples, digits
from genfl.errors import InputError
from genfl.experiment.context import RunContext
from genfl.storage import sha256

FEDERATE = {"federate", "report"}
TRAIN = {"pretrain", *FEDERATE}
GUIDED = {"guided", *FEDERATE}
GENERATE = {"generate", "guided", "audit", *TRAIN}
PROMPTS = {"prompts", *GENERATE}
EVERYTHING = {"labels", *PROMPTS}
PRIVATE = {"labels", "audit", *GUIDED}  # what reads private examples
REPORT = {"report"}  # it shows the whole config, so it is in every row

BASES = {
    # Images of numbers, and a diffusion model that clients guide by their own examples.
    "digits": """
name: table
seeds: [0, 1]
data: {name: digits, partition: {kind: dirichlet, alpha: 0.5, clients: 6}}
prompts: {style: multiple, per_label: 4}
model: {name: mlp, width: 8}
federate: {rounds: 4, clients_per_round: 2, local: {steps: 2}}
content: {samples: 60, guidance: real, filter: {share: 0.5}}
methods:
  plain: {algorithm: fedavg}
  warm: {algorithm: fedprox, start: pretrained}
  mixed: {algorithm: fedavg, data: mixed}
""",
    # Digits with owners and two domains.
    "owned": """
name: table
seeds: [0, 1]
data: {name: owned digits, partition: {kind: natural}}
generator: none
model: {name: mlp, width: 8}
federate: {rounds: 4, clients_per_round: 2}
methods: {plain: {algorithm: fedavg}}
""",
    "images": """
name: table
seeds: [0, 1]
data: {name: images, path: $images, size: [4, 4], partition: {kind: iid, clients: 3}}
generator: {kind: files, path: $images}
prompts: {per_label: 2}
model: {name: mlp, width: 8}
federate: {clients_per_round: 2}
methods: {plain: {algorithm: fedavg}, warm: {algorithm: fedavg, start: pretrained}}
""",
    "texts": """
name: table
seeds: [0, 1]
data: {name: texts, path: $texts, length: 4, partition: {kind: iid, clients: 3}}
generator: {kind: text, model: m, base_url: "http://127.0.0.1:9/v1", words: 5, trusted: true}
prompts: {style: llm, per_label: 2, llm: {model: m, base_url: "http://127.0.0.1:9/v1"}}
model: {name: lstm, embedding: 4, width: 4}
federate: {clients_per_round: 2}
content: {samples: 6, guidance: real}
methods:
  plain: {algorithm: fedavg}
  warm: {algorithm: fedavg, start: pretrained}
  mixed: {algorithm: fedavg, data: mixed}
""",
    # The same texts, read by words of generated ones.
    "words": """
name: table
seeds: [0, 1]
data: {name: texts, path: $texts, length: 4, tokenizer: generated, partition: {kind: iid, clients: 3}}
generator: {kind: files, path: $written}
prompts: {per_label: 2}
model: {name: lstm, embedding: 4, width: 4}
federate: {clients_per_round: 2}
methods: {plain: {algorithm: fedavg}, warm: {algorithm: fedavg, start: pretrained}}
""",
    "sounds": """
name: table
seeds: [0, 1]
data: {name: sounds, path: $sounds, seconds: 0.5, partition: {kind: iid, clients: 3}}
generator: {kind: speech}
prompts: {per_label: 2}
model: {name: fedaudio}
federate: {clients_per_round: 2}
methods: {plain: {algorithm: fedavg}, warm: {algorithm: fedavg, start: pretrained}}
""",
}


class Row(NamedTuple):
    """A change of a config.

    Attributes:
        field: The field that it is about; see `fields`.
        change: What is set.
        again: The stages that must run again.
        base: Which of `BASES` is changed.
        given: What is set before and after.
    """

    field: str
    change: str
    again: set[str]
    base: str = "digits"
    given: tuple[str, ...] = ()


OF_SHARDS = ("data.partition.kind=shards",)
OF_DOMAINS = ("data.partition.kind=domain", "data.partition.clients_per_domain=2")
FILL = ("prompts.style=fill", "prompts.template='a {look} {label}'", "prompts.blanks={look: [big]}")
SECURE = ("federate.secure=true",)
LOCAL_LLM = ("prompts.llm={model: $model}",)
LOCAL_TEXT = ("generator={kind: text, model: $model}",)
VOICE = ("generator={kind: speech, model: $model, vocoder: $model, speakers: $voices}",)
SOUND = ("generator={kind: sound, model: $model}",)
IMAGE = ("generator={kind: image, model: $model}",)
PROMPTED = ("content={samples: 60, filter: {share: 0.5}}",)
OF_EACH = ("content={per_client: 8, guidance: real, filter: {share: 0.5}}",)
OF_METHOD = ("methods.mixed.content={samples: 60, guidance: real, filter: {share: 0.5}}",)
PROMPTED_METHOD = ("content={}", "methods.mixed.content={samples: 60, filter: {share: 0.5}}")
UNFILTERED = ("content={samples: 60}",)
PROTECTED = ("privacy={unit: user, epsilon: 8}",)
COLD = ("methods={plain: {algorithm: fedavg}}", "content={}")
EXPONENTIAL = ("pretrain.schedule=exponential", "pretrain.lr_decay=0.9")
EXISTING = ("pretrain.init=$weights",)
PUBLIC = ("public={path: $public}", "methods.warm.source=public")
PUBLIC_TEXTS = ("public={path: $public_texts}", "methods.warm.source=public")
PUBLIC_REST = ("data.partition.samples=600", "public={}", "methods.warm.source=public")
DISTILLED = ("public={path: $public}", "methods.more={algorithm: dsfl, source: public}")

# Generated texts become the vocabulary, by which clients and pre-training read theirs.
WORDS = {"vocabulary", *TRAIN}
NO_GUIDED = {"guided"}

ROWS = [
    Row("name", "name=other", REPORT),
    Row("seeds", "seeds=[0, 1, 2]", {"guided", *TRAIN}),
    # The first seed is also that of label discovery, of the prompts, and of what is made from them.
    Row("seeds", "seeds=[2, 1]", EVERYTHING),
    Row("precision", "precision=bf16", TRAIN),
    Row("device", "device=cuda", TRAIN),
    Row("device", "device=cuda:1", REPORT, given=("device=cuda:0",)),
    # --- data
    # Label names alone decide prompts and generated samples. Pre-training reads samples in the data's format.
    Row("data.name", "data.name=digits too", {"pretrain", *PRIVATE}),
    Row("data.path", "data.path=$images_copy", REPORT, "images"),
    Row("data.path", "data.path=$images_other", PRIVATE - NO_GUIDED, "images"),
    Row("data.input", "data.input=body", PRIVATE, "texts"),
    Row("data.label", "data.label=topic", EVERYTHING, "texts"),
    Row("data.folders", "data.folders=split/class", PRIVATE - NO_GUIDED, "images"),
    Row(
        "data.client_id",
        "data.client_id=city",
        PRIVATE,
        "texts",
        ("data.partition={kind: natural}", "data.client_id=key"),
    ),
    Row("data.group", "data.group=city", PRIVATE, "texts"),
    Row("data.test_from", "data.test_from=clients", PRIVATE, "texts", ("data.client_id=key",)),
    Row(
        "data.test_share",
        "data.test_share=0.3",
        PRIVATE,
        "texts",
        ("data.client_id=key", "data.test_from=samples"),
    ),
    # Generators that copy files leave out those that have no such input.
    Row("data.size", "data.size=[8, 8]", EVERYTHING - NO_GUIDED - {"prompts"}, "images"),
    Row("data.channels", "data.channels=1", EVERYTHING - NO_GUIDED - {"prompts"}, "images"),
    Row("data.length", "data.length=5", {"pretrain", *PRIVATE}, "texts"),
    Row("data.tokenizer", "data.tokenizer=$tokenizer", {"pretrain", *PRIVATE}, "texts"),
    # What the words are is not known before texts are generated: nothing before them depends on it.
    Row("data.tokenizer", "data.tokenizer=generated", WORDS, "words", ("data.tokenizer=hashed",)),
    Row("data.tokenizer", "data.tokenizer=$tokenizer_copy", REPORT, "texts", ("data.tokenizer=$tokenizer",)),
    Row("data.seconds", "data.seconds=0.6", {"labels", "audit", *TRAIN}, "sounds"),
    # Who holds which label does not matter to prompts and generated data.
    Row("data.partition.kind", "data.partition.kind=iid", {"labels", *GUIDED}),
    Row("data.partition.clients", "data.partition.clients=7", {"labels", *GUIDED}),
    Row("data.partition.alpha", "data.partition.alpha=1.0", {"labels", *GUIDED}),
    Row("data.partition.min_size", "data.partition.min_size=2", {"labels", *GUIDED}),
    Row("data.partition.clients", "data.partition.clients=9", {"labels", *FEDERATE}, "owned"),
    Row("data.partition.min_size", "data.partition.min_size=9", {"labels", *FEDERATE}, "owned"),
    Row(
        "data.partition.shards_per_client",
        "data.partition.shards_per_client=3",
        {"labels", *GUIDED},
        given=OF_SHARDS,
    ),
    Row(
        "data.partition.clients_per_domain",
        "data.partition.clients_per_domain=3",
        {"labels", *FEDERATE},
        "owned",
        OF_DOMAINS,
    ),
    Row(
        "data.partition.within", "data.partition.within=dirichlet", {"labels", *FEDERATE}, "owned", OF_DOMAINS
    ),
    # A client knows its labels whether it tests on some of its samples or not.
    Row("data.partition.test", "data.partition.test=0.2", GUIDED),
    Row("data.partition.samples", "data.partition.samples=600", {"labels", *GUIDED}),
    # --- labels: how they are found is not what is found
    Row("labels.cells", "labels.cells=90", {"labels", "report"}),
    Row("labels.hashes", "labels.hashes=3", {"labels", "report"}),
    Row("labels.attempts", "labels.attempts=7", {"labels", "report"}),
    Row("labels.bins", "labels.bins=64", {"labels", "report"}),
    Row("labels.min_holders", "labels.min_holders=2", {"labels", "report"}),
    Row("labels.max_bytes", "labels.max_bytes=65", {"labels", "report"}),
    Row("labels.count_epsilon", "labels.count_epsilon=1.0", {"labels", "report"}),
    # --- prompts
    Row("prompts.style", "prompts.style=single", PROMPTS),
    Row("prompts.template", "prompts.template='one {look} {label}'", PROMPTS, given=FILL),
    Row("prompts.blanks", "prompts.blanks={look: [tall]}", PROMPTS, given=FILL),
    Row("prompts.per_label", "prompts.per_label=5", PROMPTS),
    Row("prompts.wrong", "prompts.wrong=0.5", PROMPTS),
    Row("prompts.guidance_scale", "prompts.guidance_scale=2.0", PROMPTS),
    Row("prompts.block_size", "prompts.block_size=9", PROMPTS),
    Row("prompts.llm", "prompts={style: single, per_label: 2}", PROMPTS, "texts"),
    Row("prompts.llm.model", "prompts.llm.model=n", PROMPTS, "texts"),
    Row("prompts.llm.model", "prompts.llm.model=$model_other", PROMPTS, "texts", LOCAL_LLM),
    Row("prompts.llm.model", "prompts.llm.model=$model_copy", REPORT, "texts", LOCAL_LLM),
    Row("prompts.llm.base_url", "prompts.llm.base_url='http://127.0.0.1:8/v1'", PROMPTS, "texts"),
    Row("prompts.llm.api_key_env", "prompts.llm.api_key_env=KEY", REPORT, "texts"),
    Row("prompts.llm.device", "prompts.llm.device=cuda", PROMPTS, "texts", LOCAL_LLM),
    Row(
        "prompts.llm.device",
        "prompts.llm.device=cuda:1",
        REPORT,
        "texts",
        ("prompts.llm={model: $model, device: 'cuda:0'}",),
    ),
    Row("prompts.llm.temperature", "prompts.llm.temperature=0.5", PROMPTS, "texts"),
    Row("prompts.llm.max_tokens", "prompts.llm.max_tokens=400", PROMPTS, "texts"),
    Row("prompts.llm.timeout", "prompts.llm.timeout=9.0", REPORT, "texts"),
    Row("prompts.llm.parallel", "prompts.llm.parallel=9", REPORT, "texts"),
    Row("prompts.llm.attempts", "prompts.llm.attempts=9", PROMPTS, "texts"),
    Row("prompts.llm.distinct", "prompts.llm.distinct=9", PROMPTS, "texts"),
    Row("prompts.llm.system", "prompts.llm.system=Be short.", PROMPTS, "texts"),
    Row("prompts.llm.query", "prompts.llm.query=fedgc", PROMPTS, "texts"),
    Row("prompts.llm.fallback", "prompts.llm.fallback=multiple", PROMPTS, "texts"),
    # --- the generator
    Row("generator.kind", "generator={kind: files, path: $images}", GENERATE),
    Row(
        "generator.kind",
        "generator=none",
        {"audit", *FEDERATE},
        given=("methods={plain: {algorithm: fedavg}}", "content={}"),
    ),
    Row("generator.image.model", "generator.model=$model", GENERATE),
    Row("generator.image.model", "generator.model=$model_copy", REPORT, given=IMAGE),
    Row("generator.image.steps", "generator.steps=16", GENERATE),
    Row("generator.image.device", "generator.device=cuda", GENERATE),
    Row("generator.image.device", "generator.device=cuda:1", REPORT, given=("generator.device=cuda:0",)),
    Row("generator.image.size", "generator.size=[16, 16]", GENERATE),
    # Nothing but real examples is drawn over.
    Row("generator.image.strength", "generator.strength=0.5", GUIDED),
    Row("generator.image.strength", "generator.strength=0.5", REPORT, given=PROMPTED),
    Row("generator.image.safety_checker", "generator.safety_checker=true", GENERATE),
    Row("generator.files.path", "generator.path=$images_copy", REPORT, "images"),
    Row("generator.files.path", "generator.path=$images_other", GENERATE - NO_GUIDED, "images"),
    Row("generator.files.path", "generator.path=$texts", {"generate", "audit", *WORDS}, "words"),
    Row("generator.files.input", "generator.input=body", {"generate", "audit", *WORDS}, "words"),
    Row("generator.files.label", "generator.label=topic", {"generate", "audit", *WORDS}, "words"),
    Row("generator.speech.model", "generator.model=$model", GENERATE - NO_GUIDED, "sounds"),
    Row("generator.speech.model", "generator.model=$model_copy", REPORT, "sounds", VOICE),
    Row("generator.speech.language", "generator.language=de", GENERATE - NO_GUIDED, "sounds"),
    Row("generator.speech.seconds", "generator.seconds=2.0", GENERATE - NO_GUIDED, "sounds"),
    Row("generator.speech.snr", "generator.snr=null", GENERATE - NO_GUIDED, "sounds"),
    Row("generator.speech.vocoder", "generator.vocoder=$model_other", GENERATE - NO_GUIDED, "sounds", VOICE),
    Row("generator.speech.vocoder", "generator.vocoder=$model_copy", REPORT, "sounds", VOICE),
    Row(
        "generator.speech.speakers", "generator.speakers=$voices_other", GENERATE - NO_GUIDED, "sounds", VOICE
    ),
    Row("generator.speech.speakers", "generator.speakers=$voices_copy", REPORT, "sounds", VOICE),
    Row("generator.speech.device", "generator.device=cuda", GENERATE - NO_GUIDED, "sounds", VOICE),
    Row(
        "generator.speech.device",
        "generator.device=cuda:1",
        REPORT,
        "sounds",
        (*VOICE, "generator.device=cuda:0"),
    ),
    Row("generator.sound.model", "generator.model=$model_other", GENERATE - NO_GUIDED, "sounds", SOUND),
    Row("generator.sound.model", "generator.model=$model_copy", REPORT, "sounds", SOUND),
    Row("generator.sound.steps", "generator.steps=9", GENERATE - NO_GUIDED, "sounds", SOUND),
    Row("generator.sound.seconds", "generator.seconds=2.0", GENERATE - NO_GUIDED, "sounds", SOUND),
    Row("generator.sound.device", "generator.device=cuda", GENERATE - NO_GUIDED, "sounds", SOUND),
    Row(
        "generator.sound.device",
        "generator.device=cuda:1",
        REPORT,
        "sounds",
        (*SOUND, "generator.device=cuda:0"),
    ),
    Row("generator.text.model", "generator.model=n", GENERATE, "texts"),
    Row("generator.text.model", "generator.model=$model_other", GENERATE, "texts", LOCAL_TEXT),
    Row("generator.text.model", "generator.model=$model_copy", REPORT, "texts", LOCAL_TEXT),
    Row("generator.text.base_url", "generator.base_url='http://127.0.0.1:8/v1'", GENERATE, "texts"),
    Row("generator.text.api_key_env", "generator.api_key_env=KEY", REPORT, "texts"),
    Row("generator.text.device", "generator.device=cuda", GENERATE, "texts", LOCAL_TEXT),
    Row(
        "generator.text.device",
        "generator.device=cuda:1",
        REPORT,
        "texts",
        (*LOCAL_TEXT, "generator.device=cuda:0"),
    ),
    Row("generator.text.temperature", "generator.temperature=0.5", GENERATE, "texts"),
    Row("generator.text.max_tokens", "generator.max_tokens=400", GENERATE, "texts"),
    Row("generator.text.timeout", "generator.timeout=9.0", REPORT, "texts"),
    Row("generator.text.parallel", "generator.parallel=9", REPORT, "texts"),
    Row("generator.text.attempts", "generator.attempts=9", GENERATE, "texts"),
    Row("generator.text.system", "generator.system=Be short.", GENERATE, "texts"),
    Row("generator.text.query", "generator.query='{label}{examples}'", GENERATE, "texts"),
    Row(
        "generator.text.texts_per_label",
        "generator.texts_per_label=3",
        GENERATE,
        "texts",
        ("generator.query='{labels}{examples}'", "generator.texts_per_label=2"),
    ),
    Row("generator.text.words", "generator.words=6", GENERATE, "texts"),
    Row("generator.text.shots", "generator.shots=2", GUIDED, "texts"),
    Row("generator.text.shots", "generator.shots=2", REPORT, "texts", ("content={samples: 6}",)),
    # The data card of guided samples says whether the server was trusted.
    Row("generator.text.trusted", "generator.trusted=false", GUIDED, "texts"),
    # --- models
    Row("model.name", "model={name: cnn}", TRAIN),
    Row("model.options", "model.width=9", TRAIN),
    Row("model.options", "model.vocabulary=50", WORDS, "words"),
    Row("client_models.name", "client_models=[mlp, cnn]", FEDERATE, given=("client_models=[mlp, mlp]",)),
    Row(
        "client_models.options",
        "client_models=[{name: mlp, width: 9}]",
        FEDERATE,
        given=("client_models=[mlp]",),
    ),
    # A text model with little room decides how many words there are.
    Row(
        "client_models.options",
        "client_models=[{name: lstm, vocabulary: 50}]",
        WORDS,
        "words",
        ("client_models=[lstm]",),
    ),
    # --- pre-training
    Row("pretrain.epochs", "pretrain.epochs=9", TRAIN),
    Row("pretrain.batch_size", "pretrain.batch_size=9", TRAIN),
    Row("pretrain.lr", "pretrain.lr=0.5", TRAIN),
    Row("pretrain.optimizer", "pretrain.optimizer=sgd", TRAIN),
    Row("pretrain.momentum", "pretrain.momentum=0.5", TRAIN, given=("pretrain.optimizer=sgd",)),
    Row("pretrain.lr_decay", "pretrain.lr_decay=0.5", TRAIN, given=EXPONENTIAL),
    Row("pretrain.schedule", "pretrain.schedule=constant", TRAIN),
    Row("pretrain.weight_decay", "pretrain.weight_decay=0.5", TRAIN),
    Row("pretrain.holdout", "pretrain.holdout=0.5", TRAIN),
    Row("pretrain.patience", "pretrain.patience=9", TRAIN),
    Row("pretrain.init", "pretrain.init=$weights", TRAIN),
    Row("pretrain.init", "pretrain.init=$weights_other", TRAIN, given=EXISTING),
    Row("pretrain.init", "pretrain.init=$weights_copy", REPORT, given=EXISTING),
    Row("pretrain.augment.crop", "pretrain.augment.crop=1", TRAIN),
    Row("pretrain.augment.padding", "pretrain.augment.padding=reflect", TRAIN),
    Row("pretrain.augment.flip", "pretrain.augment.flip=true", TRAIN),
    Row("pretrain.augment.cutout", "pretrain.augment.cutout=1", TRAIN),
    Row("pretrain.augment.time_shift", "pretrain.augment.time_shift=1", TRAIN, "sounds"),
    Row("pretrain.augment.time_mask", "pretrain.augment.time_mask=1", TRAIN, "sounds"),
    Row("pretrain.augment.frequency_mask", "pretrain.augment.frequency_mask=1", TRAIN, "sounds"),
    Row("pretrain.augment.masks", "pretrain.augment.masks=2", TRAIN, "sounds"),
    Row("pretrain.augment.noise", "pretrain.augment.noise=0.5", TRAIN),
    # --- the federation
    Row("federate.rounds", "federate.rounds=7", FEDERATE),
    Row("federate.clients_per_round", "federate.clients_per_round=3", FEDERATE),
    Row("federate.evaluate_every", "federate.evaluate_every=1", FEDERATE),
    Row("federate.checkpoint_every", "federate.checkpoint_every=1", REPORT),
    Row("federate.keep_every", "federate.keep_every=2", FEDERATE),
    # auto may run clients in batches, whose last bits depend on the fast path
    Row("federate.fast", "federate.fast=false", FEDERATE),
    Row("federate.quorum", "federate.quorum=2", REPORT),
    Row("federate.deadline", "federate.deadline=60", REPORT),
    Row("federate.secure", "federate.secure=true", FEDERATE),
    Row("federate.secure.threshold", "federate.secure={threshold: 2}", FEDERATE, given=SECURE),
    Row("federate.secure.limit", "federate.secure={limit: 512}", FEDERATE, given=SECURE),
    Row("federate.secure.precision", "federate.secure={precision: 0.1}", FEDERATE, given=SECURE),
    Row(
        "federate.extractor",
        "federate.extractor=$weights",
        FEDERATE,
        given=("federate.heterogeneity=true",),
    ),
    Row("federate.heterogeneity", "federate.heterogeneity=true", FEDERATE),
    Row("federate.engine", "federate.engine=parallel", REPORT, given=("federate.engine=sequential",)),
    Row("federate.engine", "federate.engine=vectorized", FEDERATE),
    Row("federate.local.steps", "federate.local.steps=3", FEDERATE),
    Row("federate.local.epochs", "federate.local.epochs=3", FEDERATE, given=("federate.local.steps=null",)),
    Row("federate.local.batch_size", "federate.local.batch_size=9", FEDERATE),
    Row("federate.local.lr", "federate.local.lr=0.5", FEDERATE),
    Row("federate.local.lr_decay", "federate.local.lr_decay=0.5", FEDERATE),
    Row("federate.local.momentum", "federate.local.momentum=0.5", FEDERATE),
    Row("federate.local.weight_decay", "federate.local.weight_decay=0.5", FEDERATE),
    Row("federate.local.augment.crop", "federate.local.augment.crop=1", FEDERATE),
    Row("federate.local.augment.padding", "federate.local.augment.padding=reflect", FEDERATE),
    Row("federate.local.augment.flip", "federate.local.augment.flip=true", FEDERATE),
    Row("federate.local.augment.cutout", "federate.local.augment.cutout=1", FEDERATE),
    Row("federate.local.augment.time_shift", "federate.local.augment.time_shift=1", FEDERATE, "sounds"),
    Row("federate.local.augment.time_mask", "federate.local.augment.time_mask=1", FEDERATE, "sounds"),
    Row(
        "federate.local.augment.frequency_mask", "federate.local.augment.frequency_mask=1", FEDERATE, "sounds"
    ),
    Row("federate.local.augment.masks", "federate.local.augment.masks=2", FEDERATE, "sounds"),
    Row("federate.local.augment.noise", "federate.local.augment.noise=0.5", FEDERATE),
    Row("federate.local.augment.data", "federate.local.augment.data=private", FEDERATE),
    # --- content, of all methods and of one: how much is generated of what, and what is done with it
    Row("content.samples", "content.samples=50", GUIDED),
    Row("content.per_client", "content.per_client=9", GUIDED, given=OF_EACH),
    Row("content.budget", "content.budget=inverse", GUIDED),
    Row("content.clients", "content.clients=0.5", GUIDED),
    Row("content.guidance", "content.guidance=mixed", GUIDED),
    Row("content.weight", "content.weight=private", FEDERATE),
    # It decides no bit of the models, only the bytes that are sent; but a method counts as a whole.
    Row("content.by", "content.by=server", FEDERATE, given=PROMPTED),
    Row("content.filter", "content.filter=null", FEDERATE),
    Row("content.filter.share", "content.filter.share=0.4", FEDERATE),
    Row("content.filter.from_round", "content.filter.from_round=2", FEDERATE),
    Row("content.filter.by_class", "content.filter.by_class=true", FEDERATE),
    Row("methods.*.content", "methods.mixed.content={guidance: mixed}", GUIDED),
    Row("methods.*.content.samples", "methods.mixed.content.samples=50", GUIDED, given=OF_METHOD),
    Row("methods.*.content.per_client", "methods.mixed.content={per_client: 9, guidance: real}", GUIDED),
    Row("methods.*.content.budget", "methods.mixed.content.budget=inverse", GUIDED, given=OF_METHOD),
    Row("methods.*.content.clients", "methods.mixed.content.clients=0.5", GUIDED, given=OF_METHOD),
    Row("methods.*.content.guidance", "methods.mixed.content.guidance=mixed", GUIDED, given=OF_METHOD),
    Row("methods.*.content.weight", "methods.mixed.content.weight=private", FEDERATE, given=OF_METHOD),
    Row("methods.*.content.by", "methods.mixed.content.by=server", FEDERATE, given=PROMPTED_METHOD),
    Row("methods.*.content.filter", "methods.mixed.content.filter=null", FEDERATE, given=OF_METHOD),
    Row(
        "methods.*.content.filter.share", "methods.mixed.content.filter.share=0.4", FEDERATE, given=OF_METHOD
    ),
    Row(
        "methods.*.content.filter.from_round",
        "methods.mixed.content.filter.from_round=2",
        FEDERATE,
        given=OF_METHOD,
    ),
    Row(
        "methods.*.content.filter.by_class",
        "methods.mixed.content.filter.by_class=true",
        FEDERATE,
        given=OF_METHOD,
    ),
    # --- methods
    Row("methods", "methods.more={algorithm: scaffold}", FEDERATE),
    Row(
        "methods.*.algorithm.name",
        "methods.warm.algorithm=fedprox",
        FEDERATE,
        given=("methods.warm.algorithm=fedavg",),
    ),
    Row("methods.*.algorithm.options", "methods.warm.algorithm={name: fedprox, mu: 0.5}", FEDERATE),
    Row("methods.*.start", "methods.warm.start=random", FEDERATE),
    Row("methods.*.data", "methods.mixed.data=p2g", FEDERATE),
    Row(
        "methods.*.data",
        "methods.plain.data=mixed",
        GUIDED,
        given=("methods.mixed={algorithm: fedprox, data: mixed, content: {guidance: prompt}}",),
    ),
    # --- public data: its content counts, wherever it lies
    Row("methods.*.source", "methods.warm.source=generated", TRAIN, "images", (*PUBLIC, DISTILLED[1])),
    Row("methods.*.source", "methods.more.source=generated", FEDERATE, "images", (*PUBLIC, DISTILLED[1])),
    Row("public", "public={path: $public_other}", {"audit", *TRAIN}, "images", PUBLIC),
    Row("public.path", "public.path=$public_copy", REPORT, "images", PUBLIC),
    Row("public.path", "public.path=$public_other", {"audit", *FEDERATE}, "images", DISTILLED),
    Row("public.folders", "public.folders=split/class", REPORT, "images", PUBLIC),
    Row("public.name", "public.name=digits too", {"audit", *TRAIN}, given=PUBLIC_REST),
    Row("public.input", "public.input=body", {"audit", *TRAIN}, "texts", PUBLIC_TEXTS),
    Row("public.label", "public.label=topic", {"audit", *TRAIN}, "texts", PUBLIC_TEXTS),
    Row("public.samples", "public.samples=10", {"audit", *TRAIN}, "images", PUBLIC),
    Row("public.labelled", "public.labelled=false", {"audit", *FEDERATE}, "images", DISTILLED),
    # --- the report
    Row("report.target_accuracy", "report.target_accuracy=0.5", REPORT),
    Row("report.target_accuracy", "report.target_accuracy=[0.9, 0.5]", REPORT),
    Row("report.byte_budget", "report.byte_budget=1000", REPORT),
    Row("report.real_examples", "report.real_examples=true", REPORT),
    Row("audit.overlap", "audit.overlap=ignore", REPORT),
    # What is dropped, nobody trains on.
    Row("audit.overlap", "audit.overlap=drop", {"audit", *TRAIN}),
    Row("audit.overlap", "audit.overlap=drop", {"audit", *WORDS}, "words"),
    Row("report.compare", "report.compare=[plain, mixed]", REPORT),
    # --- trackers: who watches a run changes nothing of it
    Row("track.tensorboard", "track.tensorboard=true", set()),
    Row("track.mlflow", "track.mlflow={uri: 'http://127.0.0.1:9'}", set()),
    Row("track.mlflow.uri", "track.mlflow.uri='http://127.0.0.1:9'", set()),
    Row("track.mlflow.experiment", "track.mlflow.experiment=mine", set()),
    # --- differential privacy: it changes training, and nothing before
    Row("privacy", "privacy={unit: user, epsilon: 8}", FEDERATE),
    *(
        Row(
            f"privacy.{field}", f"privacy={{unit: sample, epsilon: 8, {setting}}}", FEDERATE, given=UNFILTERED
        )
        for field, setting in {
            "delta": "delta: 1.0e-6",
            "max_grad_norm": "max_grad_norm: 2.0",
            "generated": "generated: protected",
            "accountant": "accountant: rdp",
            "repeatable": "repeatable: true",
        }.items()
    ),
    *(
        Row(f"privacy.{field}", f"privacy={{unit: user, epsilon: 8, {setting}}}", FEDERATE)
        for field, setting in {
            "cohorts": "cohorts: fixed",
            "target_quantile": "target_quantile: 0.5",
            "noise": "noise: distributed",
            "quorum": "noise: distributed, quorum: 2",
        }.items()
    ),
    Row(
        "privacy.mechanism",
        "privacy={unit: user, epsilon: 8, cohorts: cyclic, mechanism: blt}",
        FEDERATE,
        given=("privacy={unit: user, epsilon: 8, cohorts: cyclic}",),
    ),
    Row("privacy.unit", "privacy={unit: sample, epsilon: 8}", FEDERATE, given=UNFILTERED),
    Row("privacy.epsilon", "privacy={unit: sample, epsilon: 9}", FEDERATE, given=UNFILTERED),
    Row("privacy.noise_multiplier", "privacy={unit: user, noise_multiplier: 2.0}", FEDERATE),
    Row("privacy.max_update_norm", "privacy={unit: user, epsilon: 8, max_update_norm: 2.0}", FEDERATE),
    # a strict run measures less; what is stated changes no training
    Row("privacy.strict", "privacy={unit: user, epsilon: 8, strict: true}", FEDERATE, given=PROTECTED),
    Row("privacy.public", "privacy={unit: user, epsilon: 8, public: [labels]}", REPORT, given=PROTECTED),
]


# --- every field has a row


def sections(annotation):
    """Yields the sections that a value of this type may be, or hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from sections(part)


def fields(section=Config, prefix=""):
    """Yields the names of all fields that a config may set.

    The options of all algorithms are one field, ``algorithm.options``, and so are those of all models. A kind
    of generator is a part of the name. Of a section that may be absent, or of which there may be several, the
    field of that is one as well.
    """
    for name, field in section.model_fields.items():
        path, kinds = prefix + name, list(sections(field.annotation))
        if kinds == [GeneratorSection]:  # a union over the registry, read when a value is validated
            kinds = list(GENERATOR_UNION.sections().values())
        if not kinds:
            yield path
        elif issubclass(kinds[0], Choice):
            yield from (f"{path}.name", f"{path}.options")
        elif len(kinds) > 1:
            yield f"{path}.kind"
            for kind in kinds:
                (which,) = typing.get_args(kind.model_fields["kind"].annotation)
                yield from (own for own in fields(kind, f"{path}.{which}.") if not own.endswith(".kind"))
        else:
            assert issubclass(kinds[0], Section)
            several = typing.get_origin(field.annotation) is dict
            if several or field.annotation is not kinds[0]:
                yield path
            yield from fields(kinds[0], f"{path}.*." if several else f"{path}.")


def test_every_field_has_a_row():
    rows, known = {row.field for row in ROWS}, set(fields())
    assert known - rows == set(), "fields in no row"
    assert rows - known == set(), "rows that name no field"


# --- what runs again


def draw(folder, seed):
    """Writes noise that is dark or bright."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(("black", "white")):
        (folder / "train" / name).mkdir(parents=True, exist_ok=True)
        for n in range(10):
            pixels = rng.integers(100, size=(4, 4, 3), dtype=np.uint8) + np.uint8(150 * number)
            Image.fromarray(pixels).save(folder / "train" / name / f"{n}.bmp")


def write_texts(folder, word):
    """Writes texts with two columns of texts, two of classes and two of owners."""
    folder.mkdir()
    rows = [
        {
            "text": f"{label} {word} {n}",
            "body": f"{n} {word} {label}",
            "label": label,
            "topic": f"very {label}",
            "key": f"p{n % 4}",
            "city": f"c{n % 3}",
        }
        for label in ("good", "bad")
        for n in range(12)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_sounds(folder):
    soundfile = pytest.importorskip("soundfile")
    rng = np.random.default_rng(0)
    for label in ("yes", "no"):
        (folder / "train" / label).mkdir(parents=True)
        for n in range(8):
            file = folder / "train" / label / f"{n}.wav"
            soundfile.write(file, rng.uniform(-0.5, 0.5, 8_000), 16_000)


def write_tokenizer(path, *more):
    words = {word: number for number, word in enumerate(["[UNK]", "good", "bad", *more])}
    written = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    written.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    written.save(str(path))


def write_model(folder, content):
    """Writes what stands for a model: its content is all that a digest sees of it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Data, models and weights, each with a copy elsewhere, and with another content."""
    folder = tmp_path_factory.mktemp("inputs")
    draw(folder / "images", 0)
    draw(folder / "images_other", 1)
    draw(folder / "public", 2)
    draw(folder / "public_other", 3)
    write_texts(folder / "texts", "private")
    write_texts(folder / "written", "generated")
    write_texts(folder / "public_texts", "public")
    write_sounds(folder / "sounds")
    write_tokenizer(folder / "tokenizer")
    write_model(folder / "model", 1)
    write_model(folder / "model_other", 2)
    for name, content in {"weights": b"one", "weights_other": b"two"}.items():
        (folder / name).write_bytes(content)
    for name, seed in {"voices": 0, "voices_other": 1}.items():
        np.save(folder / name, np.random.default_rng(seed).normal(size=(2, 4)))
        (folder / f"{name}.npy").rename(folder / name)
    for name in ("images", "public", "model"):
        shutil.copytree(folder / name, folder / f"{name}_copy")
    for name in ("tokenizer", "weights", "voices"):
        shutil.copy(folder / name, folder / f"{name}_copy")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def parse(paths):
    """``(base, settings) -> config``, with data sets that know their owners and domains."""
    data = digits()
    count = len(data.train.labels)
    owners = [f"p{k:02}" for k in range(60) for _ in range(k + 5)][:count]
    owned = data._replace(train=LabelledExamples(data.train.x, data.train.labels, owners))
    entries = {"owned digits": owned, "digits too": data}
    for name, entry in entries.items():
        DATASETS[name] = DataEntry(lambda entry=entry: entry, "image", "")
    yield lambda base, *settings: config.parse(
        Template(BASES[base]).substitute(paths), [Template(text).substitute(paths) for text in settings]
    )
    for name in entries:
        del DATASETS[name]


@pytest.fixture(scope="module")
def digests(parse):
    """``(base, settings) -> the digest of each stage``, from data that is read once."""
    context = RunContext()

    @functools.cache  # many rows change the same config
    def digests(base, *settings):
        resolved = context.resolve(parse(base, *settings))
        return {stage.name: digest for stage, _, digest in pipeline.digests(resolved, context)}

    return digests


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.change}-{row.base}")
def test_a_changed_field_redoes_the_stages_it_touches(digests, row):
    before = digests(row.base, *row.given)
    after = digests(row.base, *row.given, row.change)
    assert {stage for stage, digest in after.items() if before.get(stage) != digest} == row.again


# --- what a stage may read of others


def test_a_stage_reads_only_the_stages_it_declares(parse, tmp_path):
    run = open_run(parse("digits"), tmp_path)
    for stage in ("labels", "prompts", "generate", "pretrain"):
        run.record(stage, {"found": []})
    allowed = {
        "labels": [],
        "prompts": ["labels"],
        "generate": ["labels", "prompts"],
        "guided": ["labels", "prompts"],
        "pretrain": ["labels", "generate"],  # texts alone have a vocabulary
        "federate": ["labels", "prompts", "generate", "guided", "pretrain"],
    }
    for stage, others in allowed.items():
        upstream = run.step(stage).work.upstream
        assert upstream.stages == others
        for other in {*allowed, "vocabulary", "report"} - set(others):
            for read in (upstream.result, upstream.digest, upstream.folder):
                with pytest.raises(LookupError, match=f"does not declare that it reads '{other}'"):
                    read(other)
    assert run.step("pretrain").work.upstream.digest("generate") == "generate"
    with pytest.raises(LookupError):
        _ = run.step("labels").work.upstream.labels


# --- what changes on disk between two runs of one process


def ran(settings, folder):
    """Runs what is not up to date; returns the names of the stages that were."""
    summary = pipeline.execute(settings, folder)
    return {name for name, stage in summary["stages"].items() if not stage["skipped"]}


FAST = (
    "seeds=[0]",
    "pretrain={epochs: 1, batch_size: 4}",
    "federate={rounds: 1, clients_per_round: 2, engine: sequential, local: {steps: 1, batch_size: 4}}",
)


@pytest.mark.slow
def test_a_second_run_sees_an_image_that_changed(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "own", 0)
    draw(tmp_path / "made", 1)
    settings = parse("images", *FAST, f"data.path={tmp_path / 'own'}", f"generator.path={tmp_path / 'made'}")
    stages = EVERYTHING - NO_GUIDED
    assert ran(settings, tmp_path / "run") == stages
    assert ran(settings, tmp_path / "run") == set()
    Image.new("RGB", (4, 4), (9, 99, 199)).save(tmp_path / "own" / "train" / "black" / "0.bmp")
    assert ran(settings, tmp_path / "run") == PRIVATE - NO_GUIDED
    assert ran(settings, tmp_path / "run") == set()
    Image.new("RGB", (4, 4), (199, 9, 99)).save(tmp_path / "made" / "train" / "black" / "0.bmp")
    assert ran(settings, tmp_path / "run") == stages - {"labels", "prompts"}
    assert ran(settings, tmp_path / "run") == set()


@pytest.mark.slow
def test_a_second_run_sees_a_public_image_that_changed(parse, tmp_path, monkeypatch):
    """What does not read it is not run again: neither prompts nor generated samples."""
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    for number, name in enumerate(("own", "made", "public")):
        draw(tmp_path / name, number)
    settings = parse(
        "images",
        *FAST,
        f"data.path={tmp_path / 'own'}",
        f"generator.path={tmp_path / 'made'}",
        f"public={{path: {tmp_path / 'public'}}}",
        "methods.warm.source=public",
    )
    assert ran(settings, tmp_path / "run") == EVERYTHING - NO_GUIDED
    generated, public = (
        tmp_path / "run" / "pretrain" / name / "model.safetensors" for name in ("seed-0", "public-seed-0")
    )
    before = [sha256(path) for path in (generated, public)]
    assert ran(settings, tmp_path / "run") == set()
    Image.new("RGB", (4, 4), (9, 99, 199)).save(tmp_path / "public" / "train" / "black" / "0.bmp")
    assert ran(settings, tmp_path / "run") == {"audit", *TRAIN}
    assert sha256(generated) == before[0], "the model of generated data is resumed from its checkpoint"
    assert sha256(public) != before[1]
    assert ran(settings, tmp_path / "run") == set()


def written(folder):
    """The time and the checksum of each file of some stages."""
    files = (path for stage in ("prompts", "synthetic", "pretrain") for path in (folder / stage).rglob("*"))
    return {path: (path.stat().st_mtime_ns, sha256(path)) for path in files if path.is_file()}


@pytest.mark.slow
def test_a_photo_more_generates_and_pretrains_nothing_again(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "own", 0)
    draw(tmp_path / "made", 1)
    given = (*FAST, f"generator.path={tmp_path / 'made'}")
    pipeline.execute(parse("images", *given, f"data.path={tmp_path / 'own'}"), tmp_path / "run")
    before = written(tmp_path / "run")
    assert len(before) >= 5
    Image.new("RGB", (4, 4), (9, 99, 199)).save(tmp_path / "own" / "train" / "black" / "one more.bmp")
    (tmp_path / "own").rename(tmp_path / "moved")
    moved = parse("images", *given, f"data.path={tmp_path / 'moved'}")
    summary = pipeline.execute(moved, tmp_path / "run", update=True)
    assert {name for name, stage in summary["stages"].items() if not stage["skipped"]} == {
        "labels",
        "audit",
        "federate",
        "report",
    }
    assert written(tmp_path / "run") == before
    # another class is another matter
    (tmp_path / "moved" / "train" / "grey").mkdir()
    (tmp_path / "made" / "train" / "grey").mkdir()
    for n in range(3):
        for folder, blue in (("moved", 128), ("made", 64)):
            shade = Image.new("RGB", (4, 4), (120, n, blue))
            shade.putpixel((0, 0), (n, n, 0))
            shade.save(tmp_path / folder / "train" / "grey" / f"{n}.bmp")
    assert ran(moved, tmp_path / "run") == EVERYTHING - NO_GUIDED


@pytest.mark.slow
def test_a_second_run_sees_a_text_that_changed(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("GENFL_CACHE", str(tmp_path / "cache"))
    for folder, word in (("own", "private"), ("made", "generated")):
        (tmp_path / folder).mkdir()
        rows = [f"{label} {word} {n},{label}" for label in ("good", "bad") for n in range(12)]
        (tmp_path / folder / "train.csv").write_text("\n".join(["text,label", *rows, ""]))
    settings = parse("words", *FAST, f"data.path={tmp_path / 'own'}", f"generator.path={tmp_path / 'made'}")
    stages = {"vocabulary", *EVERYTHING} - NO_GUIDED
    assert ran(settings, tmp_path / "run") == stages
    assert ran(settings, tmp_path / "run") == set()
    file = tmp_path / "own" / "train.csv"
    file.write_text(file.read_text().replace("good private 3", "great private 3"))
    assert ran(settings, tmp_path / "run") == {"vocabulary", *PRIVATE} - NO_GUIDED  # it counts unknown words
    file = tmp_path / "made" / "train.csv"
    file.write_text(file.read_text().replace("good generated 3", "great generated 3"))
    assert ran(settings, tmp_path / "run") == stages - {"labels", "prompts"}
    assert ran(settings, tmp_path / "run") == set()


def test_a_second_run_sees_a_model_that_changed(parse, tmp_path, monkeypatch):
    """A tokenizer and a language model are known by what is in their files, too."""
    write_tokenizer(tmp_path / "tokenizer.json")
    write_model(tmp_path / "model", 1)

    def digests():
        settings = parse(
            "texts",
            f"data.tokenizer={tmp_path / 'tokenizer.json'}",
            f"generator={{kind: text, model: {tmp_path / 'model'}}}",
        )
        context = RunContext()
        return {stage.name: digest for stage, _, digest in pipeline.digests(settings, context)}

    first = digests()
    assert digests() == first
    (tmp_path / "model" / "config.json").write_text("2")
    second = digests()
    assert {stage for stage in first if second[stage] != first[stage]} == GENERATE
    write_tokenizer(tmp_path / "tokenizer.json", "great")
    third = digests()
    assert {stage for stage in first if third[stage] != second[stage]} == {"pretrain", *PRIVATE}


def test_a_folder_is_looked_through_for_each_modality(parse, paths, tmp_path):
    """As in a sweep over data sets, whose runs share a context."""
    context, generator = RunContext(), "generator={kind: files, path: $images}"
    open_run(parse("images", generator), tmp_path, context).step("generate")
    with pytest.raises(InputError, match=r"^generator\.path: no Parquet files and no files of clips in "):
        open_run(parse("sounds", generator), tmp_path, context).step("generate")
