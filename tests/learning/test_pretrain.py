import pytest
import torch
from pydantic import ValidationError
from support.parameters import mostly_slow

from genfl import trees
from genfl.config.training import Pretraining
from genfl.errors import InputError
from genfl.learning.augment import Augment
from genfl.learning.evaluate import evaluate
from genfl.learning.pretrain import Recipe, recipe_problem, train_with_holdout
from genfl.learning.task import classification, load_weights, weights_of
from genfl.models import CNN
from genfl.rng import Key
from genfl.threads import on_threads

RECIPE = Recipe(
    epochs=6,
    batch_size=16,
    lr=2e-3,
    schedule="cosine",
    weight_decay=0.3,
    holdout=0.2,
    patience=6,
    augment=Augment(noise=0.1, crop=1),
)


@pytest.fixture(scope="module")
def problem():
    """Which quarter of the image is bright?"""
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(4, (240,), generator=rng)
    x = 0.3 * torch.rand(240, 1, 8, 8, generator=rng)
    for row, label in enumerate(y.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        x[row, :, top : top + 4, left : left + 4] += 0.4
    return classification(lambda: CNN((1, 8, 8), 4, width=8, norm="batch"), (1, 8, 8)), x, y


def _run(problem, recipe=RECIPE, **options):
    task, x, y = problem
    return train_with_holdout(task, task.init(Key(1)), x, y, recipe, Key(0), **options)


def _same(a, b):
    assert a.history == b.history
    assert a.epoch == b.epoch
    return all(
        torch.equal(x, y) for x, y in zip(trees.leaves(a.weights), trees.leaves(b.weights), strict=True)
    )


def test_it_learns(problem):
    task, x, y = problem
    assert evaluate(task, task.init(Key(1)), x, y)["accuracy"] < 0.5
    assert evaluate(task, _run(problem).weights, x, y)["accuracy"] > 0.95


class Interrupted(BaseException):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("after", mostly_slow([1, 3, 5], 3))
def test_an_interrupted_run_ends_bit_identical(problem, tmp_path, after):
    whole = _run(problem)
    count = 0

    def interrupt(epochs):
        nonlocal count
        count += epochs
        if count == after:
            raise Interrupted

    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Interrupted):
        _run(problem, checkpoint=checkpoint, on_epoch=interrupt)
    finished = []
    assert _same(whole, _run(problem, checkpoint=checkpoint, on_epoch=finished.append))
    assert finished[0] == after
    assert sum(finished) == RECIPE.epochs


def test_it_stops_early_and_gives_the_best_epoch(problem):
    """At an absurd learning rate the held-back loss gets worse soon."""
    trained = _run(problem, RECIPE._replace(epochs=50, lr=0.5, patience=2, augment=Augment()))
    losses = [row["held_back_loss"] for row in trained.history]
    assert len(losses) < 50
    assert trained.epoch == losses.index(min(losses)) + 1
    assert len(losses) == trained.epoch + 2


def test_the_best_epoch_is_that_of_the_least_loss_and_not_of_the_best_accuracy(problem):
    """Half of the labels are wrong, so that confidence is punished before accuracy falls."""
    task, x, y = problem
    wrong = torch.where(torch.rand(len(y), generator=torch.Generator().manual_seed(1)) < 0.5, (y + 1) % 4, y)
    trained = _run((task, x, wrong), RECIPE._replace(epochs=12, lr=1e-2, weight_decay=0.0, patience=12))
    losses = [row["held_back_loss"] for row in trained.history]
    accuracies = [row["held_back_accuracy"] for row in trained.history]
    assert trained.epoch == 1 + losses.index(min(losses))
    assert max(accuracies) > accuracies[trained.epoch - 1], "else the example tells nothing"


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        ({"lr": 1e30}, r"lr 1e\+30, weight_decay 0.3 and augment.noise 0.1"),
        ({"weight_decay": 1e308}, r"lr 0.002, weight_decay 1e\+308"),
        ({"augment": Augment(noise=1e38)}, r"augment.noise 1e\+38"),
    ],
)
def test_training_that_diverges_says_what_may_be_large(problem, change, figure):
    with pytest.raises(InputError, match=rf"pretrain: training diverged in epoch 1, with .*{figure}"):
        _run(problem, RECIPE._replace(**change))


def test_the_given_model_is_the_one_whose_loss_is_recorded(problem):
    task, x, y = problem
    trained = _run(problem)
    order = torch.from_numpy(Key(0).fold("holdout").numpy().permutation(len(x)))
    held = order[: round(0.2 * len(x))]
    recorded = trained.history[trained.epoch - 1]["held_back_loss"]
    assert evaluate(task, trained.weights, x[held], y[held])["loss"] == pytest.approx(recorded, rel=1e-6)


def test_it_equals_a_plain_adamw_loop(problem, float64):
    """Full batches, nothing random: against torch.optim.AdamW on the module itself."""
    _, x, y = problem
    x = x.double()
    task = classification(lambda: CNN((1, 8, 8), 4, width=8), (1, 8, 8))
    recipe = RECIPE._replace(epochs=3, batch_size=1000, schedule="constant", augment=Augment())
    trained = _run((task, x, y), recipe)
    order = torch.from_numpy(Key(0).fold("holdout").numpy().permutation(len(x)))
    rows = order[round(0.2 * len(x)) :]
    model = CNN((1, 8, 8), 4, width=8).train()
    load_weights(model, task.init(Key(1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.3)
    for _ in range(trained.epoch):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    for name, value in weights_of(model)["params"].items():
        torch.testing.assert_close(trained.weights["params"][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_equals_a_plain_loop_with_an_exponential_schedule(problem, float64, momentum):
    """Full batches, nothing random: against torch's SGD and ExponentialLR on the module itself."""
    _, x, y = problem
    x = x.double()
    task = classification(lambda: CNN((1, 8, 8), 4, width=8), (1, 8, 8))
    recipe = RECIPE._replace(
        epochs=4,
        batch_size=1000,
        lr=0.1,
        schedule="exponential",
        lr_decay=0.5,
        optimizer="sgd",
        momentum=momentum,
        weight_decay=0.01,
        augment=Augment(),
    )
    trained = _run((task, x, y), recipe)
    order = torch.from_numpy(Key(0).fold("holdout").numpy().permutation(len(x)))
    rows = order[round(0.2 * len(x)) :]
    model = CNN((1, 8, 8), 4, width=8).train()
    load_weights(model, task.init(Key(1)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert trained.epoch > 2, "the example must see more than one rate"
    for _ in range(trained.epoch):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
    for name, value in weights_of(model)["params"].items():
        torch.testing.assert_close(trained.weights["params"][name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_resumes_bit_identical(problem, tmp_path, momentum):
    recipe = RECIPE._replace(
        epochs=4, optimizer="sgd", momentum=momentum, lr=0.05, schedule="exponential", lr_decay=0.7
    )
    checkpoint = tmp_path / "checkpoint.safetensors"

    def interrupt(epochs):
        raise Interrupted

    whole = _run(problem, recipe)
    with pytest.raises(Interrupted):
        _run(problem, recipe, checkpoint=checkpoint, on_epoch=interrupt)
    assert _same(whole, _run(problem, recipe, checkpoint=checkpoint))


@pytest.mark.parametrize(
    ("chosen", "field"),
    [
        (("adamw", 0.9, "cosine", 1.0), "momentum"),
        (("sgd", 0.9, "cosine", 0.9), "lr_decay"),
        (("sgd", 0.0, "exponential", 1.0), "lr_decay"),
        (("sgd", 0.9, "exponential", 0.9), None),
        (("adamw", 0.0, "cosine", 1.0), None),
    ],
)
def test_settings_that_do_not_fit_together_are_named(chosen, field):
    problem = recipe_problem(*chosen)
    assert (problem and problem.partition(":")[0]) == field


def test_sgd_has_no_weight_decay_unless_it_is_set():
    """AdamW's default of 0.3, added to the gradient, would hold all weights near zero."""
    section = Pretraining.model_validate({"optimizer": "sgd", "momentum": 0.9})
    assert (section.weight_decay, Pretraining().weight_decay) == (0.0, 0.3)
    assert Pretraining.model_validate({"optimizer": "sgd", "weight_decay": 0.3}).weight_decay == 0.3
    assert Pretraining.model_validate(section.model_dump()) == section
    with pytest.raises(ValidationError, match=r"momentum: 0\.9, but adamw has none; set optimizer to sgd"):
        Pretraining.model_validate({"momentum": 0.9})


def test_scores_equal_scikit_learns(problem):
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    task, x, y = problem
    weights = task.init(Key(3))
    scores = task.predict(weights, x)
    result = evaluate(task, weights, x, y)
    assert result["accuracy"] == accuracy_score(y, scores.argmax(1))
    assert result["macro_f1"] == f1_score(y, scores.argmax(1), average="macro")
    assert result["loss"] == pytest.approx(log_loss(y, scores.double().softmax(1).numpy()), rel=1e-5)


@pytest.mark.slow
def test_the_cosine_schedule_lowers_the_learning_rate_to_zero(problem):
    from genfl.learning.pretrain import _lr

    rates = [_lr(RECIPE, epochs) for epochs in (0, 3, 6)]
    assert rates == pytest.approx([2e-3, 1e-3, 0.0])
    assert _lr(RECIPE._replace(schedule="constant"), 5.5) == 2e-3
    by_epoch = RECIPE._replace(schedule="exponential", lr_decay=0.5)
    assert [_lr(by_epoch, epochs) for epochs in (0, 0.9, 1, 2.5)] == [2e-3, 2e-3, 1e-3, 5e-4]
    constant = _run(problem, RECIPE._replace(schedule="constant"))
    assert constant.history[0] != _run(problem).history[0]


@pytest.mark.slow
def test_a_resumed_run_remembers_the_best_epoch_before_the_interruption(problem, tmp_path):
    recipe = RECIPE._replace(lr=0.3, patience=6, schedule="constant", augment=Augment())
    whole = _run(problem, recipe)
    assert whole.epoch < len(whole.history), "the example's best epoch must not be its last"
    checkpoint = tmp_path / "checkpoint.safetensors"
    _run(problem, recipe, checkpoint=checkpoint)
    assert _same(whole, _run(problem, recipe, checkpoint=checkpoint))


def test_the_number_of_threads_changes_nothing(problem):
    _, x, y = problem
    wide = classification(lambda: CNN((1, 8, 8), 4, width=32, norm="batch"), (1, 8, 8)), x, y
    recipe = RECIPE._replace(epochs=2, batch_size=32)
    with on_threads(1):
        alone = _run(wide, recipe)
    with on_threads(3):
        assert _same(_run(wide, recipe), alone)
        assert torch.get_num_threads() == 3
