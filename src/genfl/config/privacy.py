"""The section of differential privacy: what is protected, and how strongly."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from genfl.config.section import Section

PrivacyUnit = Literal["sample", "user"]
"""What differential privacy hides: one private sample of a client, or all of a client's data."""

AccountantName = Literal["pld", "rdp"]
"""How the privacy losses of many steps are added up."""

NoiseSource = Literal["central", "distributed"]
"""Who adds the noise on the sum of a round's uploads: the server, or each client its share."""

PublicFact = Literal["labels", "sizes", "test"]
"""What a config can declare as public knowledge."""


LEAST_NOISE = 1e-3
"""The least noise multiplier but 0. Accountants cannot tell less from none."""


FIXES = {
    "epsilon": "set a number above 0, such as 8, or noise_multiplier in its place",
    "noise_multiplier": f"set 0 or a number from {LEAST_NOISE:g} to 1e6, such as 1, or epsilon in its place",
    "delta": "set a number above 0 and below 1/n, such as 1e-5, or leave it out",
    "max_grad_norm": "set a number above 0, such as 1, or leave it out",
    "max_update_norm": "set a number above 0, such as 1, or leave it out",
    "target_quantile": "set a number between 0 and 1, such as 0.5, or leave it out",
}
"""What to do about a value that is no number in the range of its field."""


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
        " random order. If not set, poisson, or fixed with noise distributed.",
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
        " noise. Measures of single uploads, and audits in the report, are then left out. privacy.json of a"
        " run lists all releases.",
    )
    public: list[PublicFact] = Field(
        [],
        description="What is public knowledge, so that its exact release reveals nothing. labels: the label"
        " names, and how many clients hold each. sizes: how many samples clients hold, of each label. test:"
        " the test set.",
    )
    noise: NoiseSource = Field(
        "central",
        description="Unit user: who adds the noise. central: the server, which sees exact sums. distributed:"
        " each client adds its share before a secure sum, so the server sees noised sums alone. It needs"
        " fixed or cyclic cohorts, and the accountant is rdp.",
    )
    quorum: int | None = Field(
        None,
        ge=2,
        description="Noise distributed: the fewest clients of a round that must finish. That many add all the"
        " noise that epsilon needs, and more of them add more. If fewer finish, the round is skipped. If not"
        " set, all clients of a round.",
    )

    mechanism: Literal["gaussian", "blt"] = Field(
        "gaussian",
        description="Unit user: how the noise of the rounds depends on each other. gaussian: not at all. blt:"
        " the noise of a round cancels a part of that of earlier rounds, by a buffered linear Toeplitz matrix"
        " (DP-FTRL). It is for cohorts that are fixed or cyclic.",
    )

    @model_validator(mode="before")
    @classmethod
    def _accountant_of_distributed_noise(cls, content: Any) -> Any:
        """Set the one accountant that has a bound for sums of clients' noise, if none is set."""
        if isinstance(content, dict) and content.get("noise") == "distributed":
            return {"accountant": "rdp", **content}
        return content

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
        if self.noise == "distributed":
            self._check_distributed()
        elif self.quorum is not None:
            raise ValueError("quorum applies to noise distributed alone; set it, or leave quorum out")
        if self.mechanism == "blt":
            self._check_correlated()
        return self

    def _check_distributed(self) -> None:
        if self.unit == "sample":
            raise ValueError(
                "noise distributed does not apply to unit sample, whose clients add all noise; leave it out"
            )
        if self.cohorts == "poisson":
            raise ValueError(
                "cohorts: poisson does not go with noise distributed: the server sees whose uploads it adds"
                " up, so the draw hides nothing from it; set fixed"
            )
        if self.accountant != "rdp":
            raise ValueError(f"accountant: {self.accountant} has no bound for noise distributed; set rdp")
        if self.mechanism == "blt":
            raise ValueError(
                "mechanism: blt does not go with noise distributed, as one server correlates the noise; set"
                " gaussian"
            )

    def _check_correlated(self) -> None:
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
    def cohort_kind(self) -> Literal["poisson", "fixed", "cyclic"]:
        """How the clients of a round are drawn, under privacy of users."""
        return self.cohorts or ("fixed" if self.noise == "distributed" else "poisson")

    @property
    def norm(self) -> float:
        """The clipping norm: the largest norm of what one unit contributes to a sum."""
        norm = self.max_grad_norm if self.unit == "sample" else self.max_update_norm
        return 1.0 if norm is None else norm
