"""Server optimizers against a plain-numpy transcription of Reddi et al., Algorithm 2."""

import numpy as np
import pytest
import torch

from genfl.algorithms import server_optimizers as so

ROUNDS, LR, B1, B2, TAU = 20, 0.1, 0.9, 0.99, 1e-3


def transcription(rule, deltas, x, beta1=B1, bias=False):
    m, v = np.zeros_like(x), np.full_like(x, TAU**2)
    for t, d in enumerate(deltas, start=1):
        m = beta1 * m + (1 - beta1) * d
        v = {
            "adagrad": lambda v, d: v + d**2,
            "yogi": lambda v, d: v - (1 - B2) * d**2 * np.sign(v - d**2),
            "adam": lambda v, d: B2 * v + (1 - B2) * d**2,
        }[rule](v, d)
        rate = LR * np.sqrt(1 - B2 ** (t + 1)) / (1 - beta1 ** (t + 1)) if bias else LR
        x = x + rate * m / (np.sqrt(v) + TAU)
    return x


@pytest.mark.parametrize("rule", ["adam", "yogi", "adagrad", "adam_bias", "adagrad_momentum"])
def test_adaptive_rules_equal_the_papers_equations(float64, rule):
    rng = np.random.default_rng(0)
    # Differences of several magnitudes and both signs, so that Yogi's sign changes sides.
    deltas = rng.standard_normal((ROUNDS, 6)) * 10.0 ** rng.integers(-4, 1, (ROUNDS, 6))
    x = rng.standard_normal(6)
    optimizer = {
        "adam": so.fedadam(lr=LR, beta1=B1, beta2=B2, tau=TAU),
        "adam_bias": so.fedadam(lr=LR, beta1=B1, beta2=B2, tau=TAU, bias_correction=True),
        "yogi": so.fedyogi(lr=LR, beta1=B1, beta2=B2, tau=TAU),
        "adagrad": so.fedadagrad(lr=LR, tau=TAU),
        "adagrad_momentum": so.fedadagrad(lr=LR, beta1=B1, tau=TAU),
    }[rule]
    params = {"w": torch.tensor(x)}
    state = optimizer.init(params)
    for d in deltas:
        state, params = optimizer.step(state, params, {"w": torch.tensor(d)})
    beta1 = 0.0 if rule == "adagrad" else B1
    expected = transcription(rule.partition("_")[0], deltas, x, beta1, bias=rule.endswith("bias"))
    np.testing.assert_allclose(params["w"].numpy(), expected, rtol=1e-12)


def test_momentum_sums_a_geometric_series(float64):
    optimizer = so.fedavgm(lr=0.5, beta=0.9)
    params = {"w": torch.zeros(1)}
    state = optimizer.init(params)
    for _ in range(3):
        state, params = optimizer.step(state, params, {"w": torch.ones(1)})
    assert params["w"].item() == pytest.approx(0.5 * (1 + 1.9 + 2.71))


def test_yogi_leaves_a_second_moment_that_fits_as_it_is(float64):
    """Where v = Δ², and where both are zero, the sign is 0."""
    optimizer = so.fedyogi(tau=0.5)
    params = {"w": torch.zeros(2)}
    state, _ = optimizer.step(optimizer.init(params), params, {"w": torch.tensor([0.5, -0.5])})
    assert state["v"]["w"].tolist() == [0.25, 0.25]
    optimizer = so.fedyogi(initial=0.0)
    state, moved = optimizer.step(optimizer.init(params), params, {"w": torch.zeros(2)})
    assert state["v"]["w"].tolist() == moved["w"].tolist() == [0.0, 0.0]
