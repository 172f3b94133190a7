"""Generators as classifiers, against plain loops: Stable Diffusion XL and 3, and chat models."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from genfl.config.generation import TextGenerator
from genfl.errors import InputError
from genfl.generators.classify import check_classifier, label_scores
from genfl.generators.classify_text import check_text_classifier, classify_query, text_label_scores
from genfl.generators.image import StableDiffusion
from genfl.llm.chat import connect
from genfl.llm.queries import CLASSIFY_QUERIES, ChatQuery
from genfl.references import generator_classifier
from genfl.rng import Key

pytestmark = pytest.mark.slow

TEXTS = ("a seven", "two", "a bold six")


def drawings(count=3):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)) for _ in range(count)]


def pixels_of(image):
    pixels = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR))
    return torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None]


@pytest.mark.slow
def test_sdxl_logits_are_those_of_a_plain_loop(tiny_sdxl):
    """Both text encoders, the pooled text, and the sizes that diffusers' own pipeline would give."""
    generator = StableDiffusion(str(tiny_sdxl), steps=1)
    pipeline, key = generator.pipeline, Key(3)
    check_classifier(str(tiny_sdxl))
    ours = label_scores(generator, drawings(), lambda key: TEXTS, key, samples=4)
    alphas = torch.cumprod(1 - torch.tensor(pipeline.scheduler.betas), 0)
    with torch.no_grad():
        for image, row in zip(drawings(), ours, strict=True):
            latent = pipeline.vae.encode(pixels_of(image)).latent_dist.mean
            latent = latent * pipeline.vae.config.scaling_factor
            for text, logit in zip(TEXTS, row, strict=True):
                embeds, _, pooled, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False)
                ids = pipeline._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, 16)
                errors = []
                for sample, t in enumerate((125, 375, 625, 875)):
                    noise = torch.randn(latent.shape[1:], generator=key.fold("noise", sample).torch())[None]
                    noisy = alphas[t].sqrt() * latent + (1 - alphas[t]).sqrt() * noise
                    guess = pipeline.unet(
                        noisy,
                        t,
                        encoder_hidden_states=embeds,
                        added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
                    ).sample
                    errors.append(((noise - guess) ** 2).sum().item())
                assert logit.item() == pytest.approx(-np.mean(errors), rel=1e-4)
    assert len(set(ours[0].tolist())) == 3


@pytest.mark.slow
def test_sd3_logits_are_those_of_a_plain_loop(tiny_sd3):
    """The loss of flow matching: between the velocity ε − x₀ and the transformer's, at four noise levels."""
    generator = StableDiffusion(str(tiny_sd3), steps=1)
    pipeline, key = generator.pipeline, Key(3)
    check_classifier(str(tiny_sd3))
    ours = label_scores(generator, drawings(), lambda key: TEXTS, key, samples=4)
    with torch.no_grad():
        for image, row in zip(drawings(), ours, strict=True):
            latent = pipeline.vae.encode(pixels_of(image)).latent_dist.mean
            latent = (latent - 0.06) * pipeline.vae.config.scaling_factor
            for text, logit in zip(TEXTS, row, strict=True):
                embeds, _, pooled, _ = pipeline.encode_prompt(
                    text, None, None, do_classifier_free_guidance=False
                )
                errors = []
                for sample, sigma in enumerate((0.125, 0.375, 0.625, 0.875)):
                    noise = torch.randn(latent.shape[1:], generator=key.fold("noise", sample).torch())[None]
                    guess = pipeline.transformer(
                        hidden_states=torch.lerp(latent, noise, sigma),
                        timestep=torch.tensor([1000 * sigma]),
                        encoder_hidden_states=embeds,
                        pooled_projections=pooled,
                    ).sample
                    errors.append(((noise - latent - guess) ** 2).sum().item())
                assert logit.item() == pytest.approx(-np.mean(errors), rel=1e-4)
    assert len(set(ours[0].tolist())) == 3


def test_sd3_that_knows_the_velocity_is_certain(tiny_sd3):
    """The error of a label is 0 if the transformer returns the true velocity for it."""
    generator = StableDiffusion(str(tiny_sd3), steps=1)
    pooled = generator.embedding(TEXTS[1])["pooled_prompt_embeds"]
    images, pipeline = drawings(1), generator.pipeline
    latent = pipeline.vae.encode(pixels_of(images[0])).latent_dist.mean.detach()
    latent = (latent - 0.06) * pipeline.vae.config.scaling_factor

    class Knowing(torch.nn.Module):
        config, device, dtype = pipeline.transformer.config, torch.device("cpu"), torch.float32

        def forward(self, hidden_states, timestep, encoder_hidden_states, pooled_projections):
            sigma = timestep[:, None, None, None] / 1000
            velocity = (hidden_states - latent) / sigma  # x = x₀ + σ (ε − x₀)
            known = (pooled_projections == pooled).all(1)[:, None, None, None]
            return type("Output", (), {"sample": torch.where(known, velocity, 0)})

    pipeline.transformer = Knowing()
    (row,) = label_scores(generator, images, lambda key: TEXTS, Key(0), samples=4)
    assert row[1].item() == pytest.approx(0, abs=1e-4)
    assert row[0] < -1
    assert row[2] < -1


def test_other_models_are_refused_without_loading_them(tiny_pixart):
    with pytest.raises(
        InputError,
        match=r"^generator needs Stable Diffusion 1, 2, XL or 3.*PixArtAlphaPipeline\) has no unet$",
    ):
        check_classifier(str(tiny_pixart))


# --- chat models

QUERY = CLASSIFY_QUERIES["classify"]


def chat(folder=None, **options):
    return connect(TextGenerator(kind="text", **options).model_dump(), "generator", folder)


def test_classify_query_shows_labelled_examples():
    assert classify_query(QUERY, "late again", ["bad", "good"], []) == (
        "To which class does the text belong? The classes are: bad, good.\nText: late again\n"
        "Answer with the name of the class alone."
    )
    shown = classify_query(QUERY, "late again", ["bad", "good"], [("so kind", "good"), ("lost", "bad")])
    assert ".\nText: so kind\nClass: good\nText: lost\nClass: bad\nText: late again\n" in shown


@pytest.mark.parametrize("normalize", [False, True])
def test_local_scores_are_those_of_a_plain_loop(tiny_chat_model, normalize):
    """Label by label and token by token, without a batch and padding."""
    asked = chat(model=str(tiny_chat_model))
    labels = ["good", "my bag is lost again", "bad"]
    options = generator_classifier(normalize=normalize)
    ours = text_label_scores(asked, ["great crew", "so late"], labels, [], Key(0), QUERY, options)
    tokenizer, model = asked.chat.tokenizer, asked.chat.model
    for text, row in zip(["great crew", "so late"], ours, strict=True):
        message = [{"role": "user", "content": classify_query(QUERY, text, labels, [])}]
        prompt = tokenizer.encode(tokenizer.apply_chat_template(message, tokenize=False))
        for label, logit in zip(labels, row, strict=True):
            tokens, total = list(prompt), 0.0
            answer = [*tokenizer.encode(label), tokenizer.eos_token_id]
            for token in answer:
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
                total += logits.log_softmax(0)[token].item()
                tokens.append(token)
            expected = total / len(answer) if normalize else total
            assert logit.item() == pytest.approx(expected, rel=1e-4)
    assert len({*ours.flatten().tolist()}) == 6


@pytest.fixture
def knowing_model(tmp_path):
    """A Llama without layers: its next word depends on the last one alone, with known probabilities.

    After a word of a class, the class has the logit 4, and all other words have 0. After a class, all words
    have the same probability.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "good", "bad", "kind", "late"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    fast.chat_template = "{{ messages[0]['content'] }}"
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=6,
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=0,
            num_attention_heads=1,
            tie_word_embeddings=False,
            eos_token_id=1,
            bos_token_id=None,
            pad_token_id=None,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for direction, (label, word) in enumerate(((2, 4), (3, 5))):
            model.model.embed_tokens.weight[word, direction] = 1  # of norm √4 after the last layer norm
            model.lm_head.weight[label, direction] = 2
    model.save_pretrained(tmp_path / "knowing")
    fast.save_pretrained(tmp_path / "knowing")
    return tmp_path / "knowing"


def test_local_scores_are_known_probabilities(knowing_model):
    last = ChatQuery("{labels} {examples} {text}")
    scores = text_label_scores(
        chat(model=str(knowing_model)),
        ["late kind", "kind late", "unknown words"],
        ["bad", "good"],
        [],
        Key(0),
        last,
        generator_classifier(),
    )
    likely, other = math.exp(4) / (math.exp(4) + 5), 1 / (math.exp(4) + 5)
    expected = torch.tensor([[other, likely], [likely, other], [1 / 6, 1 / 6]]) / 6  # 1/6 to end after it
    torch.testing.assert_close(scores.exp(), expected, rtol=1e-4, atol=0)


def test_a_servers_answers_are_votes(chat_server, tmp_path):
    said = {
        "so kind": ["Good.", "good", "bad", "The class is **good**"],
        "so late": ["bad", "good or bad", "no idea", "I think it is bad"],
    }
    asked = []

    def behave(query, seed, number):
        text = next(text for text in said if f"Text: {text}\nAnswer" in query)
        asked.append((text, seed))
        return said[text][sum(other == text for other, _ in asked) - 1]

    chat_server.behave = behave
    examples = [("a private text", "good")]

    def classify():
        server = chat(tmp_path, model="m", base_url=chat_server.url, parallel=1)
        options = generator_classifier(votes=4)
        return text_label_scores(server, list(said), ["bad", "good"], examples, Key(0), QUERY, options)

    scores = classify()
    assert torch.allclose(scores.exp(), torch.tensor([[2, 4], [3, 1]]) / 6)
    assert len({seed for text, seed in asked if text == "so kind"}) == 4
    kept = "".join(path.read_text() for path in tmp_path.iterdir())
    assert not [word for word in ("private", "think", "idea", "class") if word in kept]
    chat_server.behave = lambda query, seed, number: "bad"
    again = classify()
    assert torch.equal(again, scores), "answers are kept, and nothing usable is asked for twice"


@pytest.mark.parametrize(
    ("settings", "options", "public", "problem"),
    [
        ({"base_url": "http://h/v1"}, {}, True, None),
        ({"base_url": "http://h/v1"}, {}, False, "generator.base_url would see the test set; set generator."),
        (
            {"base_url": "http://h/v1"},
            {"shots": 1},
            True,
            "generator.base_url would see clients' real texts;",
        ),
        ({"base_url": "http://h/v1", "trusted": True}, {"shots": 1}, False, None),
        ({}, {"shots": 4}, False, None),
        ({}, {"normalize": True}, False, None),
        ({"base_url": "http://h/v1"}, {"normalize": True}, True, "normalize: a server gives no likelihoods"),
        ({}, {"samples": 8}, True, "samples: it is for images; leave it out"),
        ({}, {"votes": 2}, True, "votes: a model that runs here is asked for likelihoods"),
    ],
)
def test_who_may_see_which_texts(settings, options, public, problem):
    generator = TextGenerator(kind="text", model="m", **settings).model_dump()
    if problem is None:
        check_text_classifier(generator, generator_classifier(**options), public=public)
        return
    with pytest.raises(InputError) as caught:
        check_text_classifier(generator, generator_classifier(**options), public=public)
    assert problem in str(caught.value)
