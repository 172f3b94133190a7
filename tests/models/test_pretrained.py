"""Loading weights trained elsewhere."""

from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from torch import nn

from genfl.learning.task import classification, weights_of
from genfl.models import CNN, MODELS, Stack
from genfl.models.pretrained import load_pretrained
from genfl.rng import Key
from genfl.storage import save_tensors


def build(classes=4, norm="batch", width=4, seed=0):
    torch.manual_seed(seed)
    return CNN((1, 8, 8), classes, width=width, norm=norm)


def trained(**chosen):
    """A model no freshly initialised one equals."""
    model = build(seed=1, **chosen)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return model


def saved(state, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(OrderedDict(state), path)
    return path


def floats(model):
    return {key: value for key, value in model.state_dict().items() if value.is_floating_point()}


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.pt"])
def test_a_file_of_the_same_model_is_loaded_whole(name, tmp_path):
    source, model = trained(), build()
    assert load_pretrained(model, saved(source.state_dict(), tmp_path / name)) == []
    for key, value in floats(source).items():
        assert torch.equal(model.state_dict()[key], value)


def test_the_head_of_other_classes_keeps_its_initial_weights(tmp_path):
    source, model = trained(classes=7), build()
    before = {key: value.clone() for key, value in floats(model).items()}
    skipped = load_pretrained(model, saved(source.state_dict(), tmp_path / "a.pth"))
    assert skipped == ["classifier.weight", "classifier.bias"]
    for key, value in floats(model).items():
        assert torch.equal(value, before[key] if key in skipped else source.state_dict()[key])


def test_a_backbone_without_a_head_is_loaded(tmp_path):
    state = {key: value for key, value in trained().state_dict().items() if "classifier" not in key}
    model = build()
    skipped = load_pretrained(model, saved(state, tmp_path / "a.safetensors"))
    assert skipped == ["classifier.weight", "classifier.bias"]
    assert torch.equal(model.state_dict()["body.0.weight"], state["body.0.weight"])


@pytest.mark.parametrize("form", ["checkpoint", "parallel"])
def test_files_as_training_scripts_write_them_are_loaded(tmp_path, form):
    model, state = build(), trained().state_dict()
    if form == "checkpoint":
        state = {"state_dict": state, "epoch": 3, "best": 0.5}
    else:
        state = {f"module.{name}": value for name, value in state.items()}
    assert load_pretrained(model, saved(state, tmp_path / "weights.pth")) == []
    assert all(torch.equal(value, floats(trained())[name]) for name, value in floats(model).items())


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    state = trained().state_dict()
    name = next(iter(state))
    state[name].flatten()[0] = float("nan")
    with pytest.raises(ValueError, match=f"{name}: not finite"):
        load_pretrained(build(), saved(state, tmp_path / "weights.pth"))


def test_counts_of_batches_are_ignored(tmp_path):
    """torchvision's oldest files have none, and no more have the models that a run writes."""
    source, model = trained(), build()
    tree = weights_of(source)
    save_tensors(tmp_path / "a.safetensors", tree["params"] | tree["buffers"])
    assert load_pretrained(model, tmp_path / "a.safetensors") == []
    assert torch.equal(model.state_dict()["body.1.running_var"], source.state_dict()["body.1.running_var"])


def test_halves_are_loaded_into_single_precision(tmp_path):
    source, model = trained().half(), build()
    load_pretrained(model, saved(source.state_dict(), tmp_path / "a.safetensors"))
    weight = model.state_dict()["body.0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, source.state_dict()["body.0.weight"].float())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 8}, r"body\.0\.weight: \(8, 1, 3, 3\) in the file, \(4, 1, 3, 3\) in the model"),
        ({"norm": "group"}, r"body\.1\.running_mean: not in the file"),
        ({"norm": "none"}, r"body\.1\.weight: not in the file"),
    ],
)
def test_weights_of_another_model_are_refused_and_nothing_is_changed(other, message, tmp_path):
    model = build()
    before = {key: value.clone() for key, value in floats(model).items()}
    path = saved(trained(**other).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, path)
    assert all(torch.equal(value, before[key]) for key, value in floats(model).items())


def test_batch_norm_statistics_are_refused_by_a_model_with_group_norm(tmp_path):
    path = saved(trained().state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"body\.1\.running_mean: not in the model"):
        load_pretrained(build(norm="group"), path)


def test_a_head_on_other_features_is_refused_even_if_its_classes_differ(tmp_path):
    def of(size, classes):
        return Stack(nn.Flatten(), nn.Linear(size, classes))

    path = saved(of(9, 4).state_dict(), tmp_path / "a.pth")
    for classes in (4, 5):
        with pytest.raises(ValueError, match=r"classifier\.weight: \(4, 9\) in the file"):
            load_pretrained(of(16, classes), path)


def test_many_mismatches_make_a_short_message(tmp_path):
    path = saved({"a": torch.zeros(1)}, tmp_path / "a.pth")
    missing = len(floats(build())) - 2 + 1  # all but the head, and a that is not known
    with pytest.raises(ValueError, match=rf"; and {missing - 5} more$") as error:
        load_pretrained(build(), path)
    assert str(error.value).count("not in the") == 5


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_files_that_hold_no_weights_are_refused(name, tmp_path):
    path = tmp_path / name
    for content in (b"", b"not weights", saved(trained().state_dict(), path).read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_pretrained(build(), path)
    with pytest.raises(FileNotFoundError):
        load_pretrained(build(), tmp_path / f"none-{name}")


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    torch.save(Code(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="more than tensors"):
        load_pretrained(build(), tmp_path / "a.pth")
    assert capsys.readouterr().out == ""
    torch.save({"weights": trained().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="not a state dict"):
        load_pretrained(build(), tmp_path / "a.pth")


@pytest.mark.slow
def test_an_imagenet_resnet_starts_a_model_of_fewer_classes(tmp_path):
    torch.manual_seed(1)
    source = MODELS["resnet18"].build((3, 224, 224), 1000)
    path = saved(source.state_dict(), tmp_path / "resnet18.pth")
    model = MODELS["resnet18"].build((3, 64, 64), 10)
    assert load_pretrained(model, path) == ["fc.weight", "fc.bias"]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval().features(x), source.eval().features(x))
    with pytest.raises(ValueError, match=r"conv1\.weight: \(64, 3, 7, 7\) in the file, \(64, 3, 3, 3\)"):
        load_pretrained(MODELS["resnet18"].build((3, 64, 64), 10, stem="cifar"), path)


def test_loaded_weights_are_a_tasks_weights(tmp_path):
    """What a run starts from: the weights by the names that its task uses."""
    source, model = trained(), build()
    load_pretrained(model, saved(source.state_dict(), tmp_path / "a.safetensors"))
    task = classification(build, (1, 8, 8))
    weights, x = weights_of(model), torch.rand(3, 1, 8, 8)
    assert {part: list(tree) for part, tree in weights.items()} == {
        part: list(tree) for part, tree in task.init(Key(0)).items()
    }
    torch.testing.assert_close(task.predict(weights, x), source.eval()(x).detach())
