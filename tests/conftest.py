"""Real parts in small: what the tests build once and share."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A slow machine is no failure: no test is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does; before torch is imported


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collection, which would look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def forget() -> Iterator[None]:
    """Take back what a test registers."""
    from genfl.algorithms import ALGORITHMS
    from genfl.data.sources import DATASETS
    from genfl.generators.registry import GENERATORS
    from genfl.models import MODELS

    registries = (ALGORITHMS, MODELS, DATASETS, GENERATORS)
    before = [entries.added() for entries in registries]
    yield
    for entries, kept in zip(registries, before, strict=True):
        entries.restore(kept)


@pytest.fixture(scope="session")
def tiny_stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised StableDiffusionPipeline folder, written by diffusers itself."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny-sd")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocabulary = {
        token: index
        for index, token in enumerate(
            [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
        )
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    torch.manual_seed(0)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def float64():
    """Runs a test in double precision."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def quadratics(float64):
    """Clients with objectives ½ a (w − b)², and a function that runs an algorithm on them."""
    import torch

    from genfl.data.clients import ClientData
    from genfl.data.plans import Schedule
    from genfl.engines.in_process import InProcess
    from genfl.engines.per_client import PerClientRunner
    from genfl.learning.task import Aux, Task
    from genfl.rng import Key
    from genfl.simulation import federate

    def loss(params, buffers, batch, key):
        a, b = batch["x"].mean(0)
        return 0.5 * a * (params["w"] - b).square().sum(), Aux(buffers)

    task = Task(
        init=lambda key: {"params": {"w": torch.zeros(1)}, "buffers": {}},
        loss=loss,
    )

    def accelerated(data):
        return InProcess(PerClientRunner(data))  # the bits of `sequential`, in a fraction of the time

    def run(algorithm, clients, rounds=80, cohort=None, seed=0, engine=accelerated, **schedule):
        """Clients are (a, b, steps): a client takes one step for each of its samples."""
        rows = [[a, b] for a, b, steps in clients for _ in range(steps)]
        ends = torch.tensor([steps for _, _, steps in clients]).cumsum(0).tolist()
        parts = [torch.arange(end)[start:].numpy() for start, end in zip([0, *ends], ends, strict=False)]
        data = ClientData(torch.tensor(rows), torch.zeros(len(rows), dtype=torch.long), parts, 1)
        plan = Schedule(rounds, cohort or len(clients), batch_size=1, **schedule)
        trace = federate(
            algorithm,
            task.init(Key(0)),
            data,
            engine(data),
            plan,
            Key(seed),
            lambda weights: {"w": weights["params"]["w"].item()},
        )
        return trace

    run.task = task
    return run


class ChatServer:
    """An OpenAI-compatible server on this machine that does as a test says.

    Attributes:
        url: Its address.
        asked: What it was sent, in order: (headers, JSON).
        behave: ``(query, seed, number of the request) -> answer``; or (status, headers, body) in its place.
    """

    def __init__(self):
        import threading
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        outer = self
        self.asked, self.behave, lock = [], lambda query, seed, number: "yes", threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.asked)
                    outer.asked.append((dict(self.headers), {**request, "path": self.path}))
                reply = outer.behave(request["messages"][-1]["content"], request.get("seed"), number)
                if isinstance(reply, str):
                    reply = 200, {}, json.dumps({"choices": [{"message": {"content": reply}}]})
                status, headers, body = reply
                body = body.encode() if isinstance(body, str) else body
                self.send_response(status)
                for name, value in {"Content-Length": len(body), **headers}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                with contextlib.suppress(OSError):  # the client may be gone
                    self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def chat_server():
    server = ChatServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


CHAT_TEXTS = {
    "good": ["the staff was kind and fast", "great flight thank you", "what a lovely crew today"],
    "bad": ["my bag is lost again", "three hours late and no news", "the worst line i ever saw"],
}


@pytest.fixture
def chat_texts():
    """What `tiny_chat_model` has learnt to say, by class."""
    return CHAT_TEXTS


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with a chat template, over-fitted to answer queries for texts of two classes."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from genfl.data.samples import Prompt
    from genfl.generators.text import ChatTexts

    folder = tmp_path_factory.mktemp("tiny-chat") / "model"
    words = sorted({word for texts in CHAT_TEXTS.values() for text in texts for word in text.split()})
    special = ["<pad>", "<unk>", "<s>", "</s>", "<user>", "<assistant>"]
    vocabulary = {word: index for index, word in enumerate([*special, "good", "bad", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    tokenizer.chat_template = (
        "{% for message in messages %}<user> {{ message['content'] }}{% endfor %}<assistant>"
    )
    asking = ChatTexts.__new__(ChatTexts)  # its queries alone
    asking.labels, asking.words = ["bad", "good"], 6
    rows = []
    for label, texts in CHAT_TEXTS.items():
        query = asking.query(Prompt(label, f"a text about {label}", 1.0, 0))
        asked = tokenizer.apply_chat_template([{"role": "user", "content": query}], tokenize=False)
        rows += [(tokenizer.encode(asked), tokenizer.encode(f"{text} </s>")) for text in texts]
    length = max(len(asked) + len(told) for asked, told in rows)
    x = torch.zeros(len(rows), length, dtype=torch.long)
    y = torch.full_like(x, -100)
    for row, (asked, told) in enumerate(rows):
        x[row, : len(asked) + len(told)] = torch.tensor(asked + told)
        y[row, len(asked) : len(asked) + len(told)] = torch.tensor(told)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=512,
                pad_token_id=0,
                bos_token_id=2,
                eos_token_id=3,
            )
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(250):
            loss = model(input_ids=x, labels=y, attention_mask=(x != 0).long()).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.generation_config.do_sample = True  # as those of chat models do
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Generating:
    """A process that runs `genfl run --until generate`.

    Args:
        settings: The config file.
        folder: The run's folder.
        shard: What it generates, if not everything.
    """

    def __init__(self, settings: Path, folder: Path, shard: Any = None) -> None:
        from support.command import Command

        self.folder = shard.folder(folder) if shard else folder
        options = ["--shard", shard] if shard else []
        self.process = Command("run", settings, "--out", folder, "--until", "generate", *options)

    def kill(self, blocks: int = 3) -> None:
        """Kills it when it has written so many blocks, and sees that it was not done."""
        from genfl import pipeline

        limit = time.monotonic() + 300
        while len(list(self.folder.glob("synthetic/data/train-*"))) < blocks:
            if self.process.poll() is not None:
                pytest.fail(f"it ended before it could be killed: {self.process.ended().stderr}")
            assert time.monotonic() < limit
            time.sleep(0.001)
        self.process.kill()
        rows = {row.name: row for row in pipeline.run_status(self.folder)}
        made, _, total, _ = rows["generate"].progress.split()
        assert 0 < int(made) < int(total), "it was over before the kill"

    def ended(self) -> str:
        """Waits until it has ended well; returns what it said."""
        ended = self.process.ended()
        assert ended.code == 0, ended.stderr
        return ended.stderr


@pytest.fixture
def generating() -> type[Generating]:
    """Starts the command that generates, to be killed in the middle of it."""
    return Generating
