"""The section of differential privacy: what is protected, and how strongly."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from genfl.config.section import Section

PrivacyUnit = Literal["sample", "user"]
"""What differential privacy hides: one private sample of a client, or all of a client's data."""

AccountantName = Literal["pld", "rdp"]
"""How the privacy losses of many steps are added up."""


PublicFact = Literal["labels", "sizes", "test"]
"""What a config can declare as public knowledge."""


LEAST_NOISE = 1e-3
"""The least noise multiplier but 0. Accountants cannot tell less from none."""


class Privacy(Section):
    """Differential privacy of training. One of epsilon and noise_multiplier gives the other."""

    unit: PrivacyUnit = Field(
        description="What is protected. sample: each private sample, by noise that its client adds to every"
        " step (DP-SGD). user: all data of a client, by noise on the sum of a round's uploads (DP-FedAvg)."
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        description="The bound on the privacy loss at the end of training. It gives the noise. Set it or"
        " noise_multiplier.",
    )
    noise_multiplier: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description="Standard deviation of the noise, divided by the clipping norm. It gives epsilon. Set it"
        " or epsilon.",
    )
    delta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="The probability with which the bound may fail. If not set, 1/n^1.1, where n is the"
        " number of private samples (unit sample) or clients (unit user).",
    )
    max_grad_norm: float | None = Field(
        None,
        gt=0,
        description="Unit sample: the largest norm of the gradient of a sample; larger ones are scaled down."
        " If not set, 1.",
    )
    max_update_norm: float | None = Field(
        None,
        gt=0,
        description="Unit user: the largest norm of a client's whole upload; larger ones are scaled down. If"
        " not set, 1.",
    )
    cohorts: Literal["poisson", "fixed", "cyclic"] | None = Field(
        None,
        description="Unit user: how the clients of a round are drawn. poisson: each client takes part with"
        " the same probability, independently. Cohorts differ in size, and the draw adds to the privacy."
        " fixed: cohorts of one size, whose draw adds nothing. cyclic: the same, but clients take turns in a"
        " random order. If not set, poisson.",
    )
    target_quantile: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Unit user: the share of uploads that the norm leaves whole. The norm then follows the"
        " clients from round to round, from max_update_norm on. If not set, the norm is fixed.",
    )
    generated: Literal["free", "protected"] = Field(
        "free",
        description="Unit sample: how generated samples at clients are treated. free: prompts alone made"
        " them, so their gradients are neither clipped nor noised and cost no epsilon. protected: like"
        " private samples.",
    )
    accountant: AccountantName = Field(
        "pld",
        description="How privacy losses are added up. pld: privacy loss distributions, which are tight. rdp:"
        " Rényi differential privacy, which is faster and gives a larger epsilon.",
    )
    repeatable: bool = Field(
        False,
        description="Whether the noise comes from the run's seed, so that the same config gives the same"
        " models again. Whoever knows the seed can then subtract the noise. If false, it comes from a"
        " secret in the run's folder.",
    )
    strict: bool = Field(
        False,
        description="Whether a config is refused that releases something computed from private data without"
        " noise. Measures of single uploads are then left out. privacy.json of a run lists all releases.",
    )
    public: list[PublicFact] = Field(
        [],
        description="What is public knowledge, so that its exact release reveals nothing. labels: the label"
        " names, and how many clients hold each. sizes: how many samples clients hold, of each label. test:"
        " the test set.",
    )
    mechanism: Literal["gaussian", "blt"] = Field(
        "gaussian",
        description="Unit user: how the noise of the rounds depends on each other. gaussian: not at all. blt:"
        " the noise of a round cancels a part of that of earlier rounds, by a buffered linear Toeplitz matrix"
        " (DP-FTRL). It is for cohorts that are fixed or cyclic.",
    )

    @model_serializer(mode="wrap")
    def _without_later_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields that change nothing, so that trained models keep digests and noise."""
        values: dict[str, Any] = handler(self)
        if values.get("mechanism") == "gaussian":
            del values["mechanism"]
        return values

    @field_validator("public")
    @classmethod
    def _different(cls, value: list[PublicFact]) -> list[PublicFact]:
        if len(set(value)) < len(value):
            raise ValueError("names something twice; name each once")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            how = "neither is set" if self.epsilon is None else "both are set, and one gives the other"
            raise ValueError(f"set epsilon or noise_multiplier: {how}")
        if self.noise_multiplier and self.noise_multiplier < LEAST_NOISE:
            raise ValueError(f"noise_multiplier must be 0, or at least {LEAST_NOISE:g}")
        if self.unit == "user" and self.generated == "protected":
            raise ValueError("generated does not apply to unit user, which protects all data; leave it out")
        for unit, field in (("user", "max_grad_norm"), ("sample", "max_update_norm")):
            if self.unit == unit and getattr(self, field) is not None:
                other = {"user": "max_update_norm", "sample": "max_grad_norm"}[unit]
                raise ValueError(f"{field} does not apply to unit {unit}; set {other}")
        for field in ("cohorts", "target_quantile"):
            if self.unit == "sample" and getattr(self, field) is not None:
                raise ValueError(f"{field} does not apply to unit sample; leave it out")
        if self.mechanism == "blt":
            self._fits_correlated_noise()
        return self

    def _fits_correlated_noise(self) -> None:
        if self.unit == "sample":
            raise ValueError("mechanism: blt does not apply to unit sample; leave it out")
        if self.cohorts not in ("fixed", "cyclic"):
            raise ValueError(
                f"mechanism: blt counts on no random cohorts, and they are {self.cohorts or 'poisson'}; set"
                " cohorts to cyclic or fixed"
            )
        if self.target_quantile is not None:
            raise ValueError(
                f"mechanism: blt needs one norm for all rounds, and target_quantile {self.target_quantile:g}"
                " changes it; leave target_quantile out, or set mechanism to gaussian"
            )

    @property
    def norm(self) -> float:
        """The clipping norm: the largest norm of what one unit contributes to a sum."""
        norm = self.max_grad_norm if self.unit == "sample" else self.max_update_norm
        return 1.0 if norm is None else norm
