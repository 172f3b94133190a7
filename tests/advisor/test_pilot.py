"""The pilot: how much it does, and what of a config it keeps."""

import pytest

import genfl
from genfl.advisor.pilot import Plan, baseline, pilot_config, plan_pilot, reduced
from genfl.errors import InputError

CONTENT = {
    "name": "small",
    "seeds": [3, 4, 5],
    "data": {"name": "digits", "partition": {"clients": 4, "alpha": 1.0}},
    "prompts": {"style": "label", "per_label": 200},
    "model": "mlp",
    "federate": {"rounds": 100, "clients_per_round": 2, "local": {"steps": 3}},
    "methods": {"fedavg": {"algorithm": "fedavg"}, "gptfl": {"algorithm": "fedavg", "start": "pretrained"}},
}


def config_with(**changes):
    return genfl.parse_config({**CONTENT, **changes})


def test_all_methods_of_a_pilot_take_seven_percent_of_the_rounds():
    config = config_with()
    plan = plan_pilot(config)
    assert plan == Plan(per_label=20, planned_per_label=200, rounds=10, planned_rounds=100)
    assert 4 * plan.rounds <= 0.07 * 3 * 2 * 100, (
        "four methods, one seed; the run has two methods, three seeds"
    )


def test_a_pilot_is_never_larger_than_the_run():
    small = config_with(prompts={"per_label": 5}, federate={"rounds": 2, "clients_per_round": 2})
    assert plan_pilot(small) == Plan(5, 5, 2, 2)
    assert plan_pilot(config_with(), federation=False).rounds == 0


def test_references_take_no_rounds():
    methods = {**CONTENT["methods"], "pooled": {"algorithm": "centralised"}}
    assert plan_pilot(config_with(methods=methods)).rounds == 10


@pytest.mark.parametrize(
    ("options", "message"), [({"per_label": 3}, "^--per-label: 3"), ({"rounds": 0}, "^--rounds: 0")]
)
def test_sizes_that_cannot_be_are_named(options, message):
    with pytest.raises(InputError, match=message):
        plan_pilot(config_with(), **options)


def test_a_pilot_has_one_seed_four_methods_and_else_the_runs_settings():
    config = config_with()
    plan = plan_pilot(config)
    pilot = pilot_config(config, plan)
    assert pilot.seeds == [3]
    assert list(pilot.methods) == ["without", "gptfl", "fedgc", "both"]
    assert [(method.start, method.data) for method in pilot.methods.values()] == [
        ("random", "private"),
        ("pretrained", "private"),
        ("random", "mixed"),
        ("pretrained", "mixed"),
    ]
    assert pilot.federate.local == config.federate.local
    assert pilot.data == config.data
    assert pilot.pretrain == config.pretrain
    assert (pilot.federate.rounds, pilot.prompts.per_label) == (10, 20)


def test_content_of_clients_shrinks_with_the_samples():
    methods = {**CONTENT["methods"], "fedgc": {"algorithm": "fedavg", "data": "mixed"}}
    content = {"samples": 1000, "budget": "water_filling", "guidance": "mixed", "filter": {"share": 0.5}}
    config = config_with(methods=methods, content=content)
    kept = pilot_config(config, plan_pilot(config)).methods["fedgc"].content
    assert (kept.samples, kept.budget, kept.guidance, kept.filter) == (100, "water_filling", "prompt", None)
    assert reduced(config) == ["samples that clients' own examples guide", "the filter of generated samples"]


def test_the_first_method_without_the_generator_is_varied():
    methods = {
        "warm": {"algorithm": {"name": "fedadam", "lr": 0.1}, "start": "pretrained"},
        "prox": {"algorithm": {"name": "fedprox", "mu": 0.5}},
    }
    name, method = baseline(config_with(methods=methods))
    assert name == "prox"
    assert method.algorithm[0].mu == 0.5
    alone = config_with(methods={"warm": methods["warm"]})
    assert baseline(alone)[0] is None
    assert {m.algorithm[0].lr for m in pilot_config(alone, plan_pilot(alone)).methods.values()} == {0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": "none", "methods": {"fedavg": {"algorithm": "fedavg"}}}, "^generator: none"),
        ({"privacy": {"unit": "sample", "epsilon": 8}}, "^privacy: an advice asks clients"),
    ],
)
def test_a_config_without_an_advice_is_one_line(changes, message):
    config = config_with(**changes)
    with pytest.raises(InputError, match=message) as error:
        pilot_config(config, plan_pilot(config))
    assert "\n" not in str(error.value)
