"""Projection heads: MOON's model and loss against a plain transcription, and weights without one."""

import torch
import torch.nn.functional as F
from torch import nn

from genfl import trees
from genfl.algorithms import ALGORITHMS, fedavg, moon
from genfl.algorithms.base import context
from genfl.learning.local import LocalSGD
from genfl.learning.task import classification
from genfl.models import CNN, MODELS
from genfl.models.pretrained import load_pretrained
from genfl.rng import Key


class Transcribed(nn.Module):
    """The authors' model: an encoder, the layers l1 and l2 of the projection, and the output layer l3."""

    def __init__(self, weights):
        super().__init__()
        convolutions = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)]
        self.conv1, self.conv2 = convolutions
        self.l1, self.l2, self.l3 = nn.Linear(32, 32), nn.Linear(32, 6), nn.Linear(6, 3)
        names = {
            "conv1": "body.0",
            "conv2": "body.4",
            "l1": "projection.0",
            "l2": "projection.2",
            "l3": "classifier",
        }
        with torch.no_grad():
            for layer, path in names.items():
                for part in ("weight", "bias"):
                    getattr(getattr(self, layer), part).copy_(weights["params"][f"{path}.{part}"])

    def forward(self, x):
        h = torch.relu(F.max_pool2d(self.conv1(x), 2))
        h = torch.relu(F.max_pool2d(self.conv2(h), 2)).flatten(1)
        z = self.l2(torch.relu(self.l1(h)))
        return z, self.l3(z)


def test_moon_with_a_projection_equals_the_papers_loss(float64):
    mu, temperature, lr = 5.0, 0.5, 0.3
    task = classification(lambda: CNN((1, 8, 8), 3, width=4, norm="none", projection=6), (1, 8, 8))
    local, globally, before = (task.init(Key(seed)) for seed in range(3))
    rng = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(7, 1, 8, 8, generator=rng), "y": torch.arange(7) % 3}

    net, global_net, previous_net = map(Transcribed, (local, globally, before))
    z, logits = net(batch["x"])
    with torch.no_grad():
        z_glob, z_prev = (other(batch["x"])[0] for other in (global_net, previous_net))
    pairs = torch.stack([F.cosine_similarity(z, z_glob), F.cosine_similarity(z, z_prev)], 1) / temperature
    contrast = F.cross_entropy(pairs, torch.zeros(7, dtype=torch.int64))
    (F.cross_entropy(logits, batch["y"]) + mu * contrast).backward()
    expected = {name: (p - lr * p.grad).detach() for name, p in net.named_parameters()}

    algorithm = fedavg(task, LocalSGD(lr), moon(mu=mu, temperature=temperature))
    message = {"weights": globally, "announced": {}}
    memory = {"method": {}, "local": before}
    carry = algorithm.client.start(message, memory, {"samples": torch.tensor(7.0)}, Key(0))
    carry["local"] = {**carry["local"], "params": local["params"]}
    stepped = algorithm.client.step(carry, batch, Key(0))
    after = Transcribed({"params": stepped["local"]["params"]})
    for name, value in after.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name], rtol=1e-10, atol=1e-12)
    assert contrast.item() > 0.1 and context(task, carry, Key(0)).memory is before


def test_moon_without_a_projection_uses_the_encoders_features(float64):
    """The same encoder with another head: the contrastive loss does not see what follows the features."""
    task = classification(lambda: CNN((1, 8, 8), 3, width=4), (1, 8, 8))
    algorithm = ALGORITHMS["moon"].build(task, LocalSGD(0.1))
    weights = task.init(Key(0))
    changed = trees.map(torch.clone, weights)
    changed["params"]["classifier.weight"] *= 2
    batch = {"x": torch.randn(4, 1, 8, 8), "y": torch.arange(4) % 3}
    outcomes = []
    for last in (weights, changed):
        memory = {"method": {}, "local": last}
        carry = algorithm.client.start(
            {"weights": weights, "announced": {}}, memory, {"samples": torch.ones(())}, Key(0)
        )
        outcomes.append(algorithm.client.step(carry, batch, Key(0))["local"]["params"])
    assert all(torch.equal(outcomes[0][key], outcomes[1][key]) for key in outcomes[0])


def test_weights_without_a_projection_are_loaded_around_it(tmp_path):
    source = MODELS["resnet20"].build((3, 8, 8), 10)
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    model = MODELS["resnet20"].build((3, 8, 8), 10, projection=6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    skipped = load_pretrained(model, path)
    head = ["fc.weight", "fc.bias"]
    assert set(skipped) == {*head, *(f"projection.{n}.{part}" for n in (0, 2) for part in ("weight", "bias"))}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in skipped else source.state_dict()[key])
    torch.save(model.state_dict(), path)
    assert load_pretrained(MODELS["resnet20"].build((3, 8, 8), 10, projection=6), path) == []
