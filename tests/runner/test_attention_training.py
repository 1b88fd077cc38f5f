"""Training of attention: the tensors say what the policy does, the loss falls on clusters kept aside, files repeat."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest
from steelyard.policies import make_policy
from steelyard.policies.attention_keys import Keys
from steelyard.policies.attention_trained import FILE, AttentionTrained, Weights, amounts, shipped
from steelyard.policies.testing import check_policy
from steelyard.results.errors import InputError
from steelyard.runner.attention.judging import exact_s, mean_loss
from steelyard.runner.attention.scoring import EXACT, TUNED_FILES, contestants, figures, throughput
from steelyard.runner.attention.worlds import FAMILIES, held_out_worlds, training_worlds, world
from steelyard.sim.noise import stream
from steelyard.sim.view import View

torch = pytest.importorskip("torch")


def _drawn() -> Weights:
    """Weights of no training, at random."""
    from steelyard.runner.attention.training import start

    first, draws = start(), stream(0, "weights")
    query = first.query + 0.3 * draws.standard_normal(first.query.shape)
    return Weights(query, first.mix + draws.standard_normal(first.mix.shape), 3)


def test_the_tensors_do_what_the_policy_does() -> None:
    """Two implementations, one arithmetic: for weights at random, over padded clusters of all families."""
    from steelyard.runner.attention.training import Batch

    weights = _drawn()
    keys = [Keys.of(View.of(world(family, 3, "test", 0))) for family in FAMILIES if family.name != "many"]
    batch = Batch.of(keys, [1.0] * len(keys))
    found = batch.amounts(torch.tensor(weights.query), torch.tensor(weights.mix), weights.rounds).numpy()
    for row, each in zip(found, keys, strict=True):
        ours = amounts(each, weights)
        assert row[: len(ours)] == pytest.approx(ours, rel=1e-9, abs=1e-9)
        assert (row[len(ours) :] == 0).all()


def test_the_soft_step_of_a_balanced_plan_is_close_to_the_exact_one() -> None:
    """The surrogate is no other objective: at the exact split its logarithm is near 0."""
    from steelyard.runner.attention.training import WHOLE, Batch

    scenarios = [world(FAMILIES[0], 5, "test", number) for number in range(4)]
    keys = [Keys.of(View.of(each)) for each in scenarios]
    batch = Batch.of(keys, [exact_s(each) for each in scenarios])
    found = torch.zeros_like(batch.capacity)
    for number, (scenario, each) in enumerate(zip(scenarios, keys, strict=True)):
        samples = make_policy("makespan").allocate(View.of(scenario)).samples()
        for place, device in enumerate(each.view.devices):
            found[number, place] = samples.get(device.name, 0)
    assert 0 <= batch.loss(found, WHOLE).item() < 0.12  # log(12) / 30: the smooth maximum of 12 equal times


def test_training_lowers_the_loss_also_where_it_did_not_look() -> None:
    """From weights without the gain and half the load's weight, so that there is something to learn."""
    from steelyard.runner.attention import training

    first = training.start()
    scenarios = training_worlds(2, 24)
    exact = [exact_s(each) for each in scenarios]
    blunt = Weights(np.zeros_like(first.query), np.zeros_like(first.mix), 4)
    batch = training.Batch.of([Keys.of(View.of(each)) for each in scenarios[:16]], exact[:16])
    learned, surrogate = training._descend(blunt, batch, 40, lambda line: None)
    before, after = (mean_loss(scenarios[16:], exact[16:], training._Judged(weights)) for weights in (blunt, learned))
    assert surrogate[1] < 0.7 * surrogate[0]
    assert after < before


def test_training_repeats() -> None:
    from steelyard.runner.attention.training import train

    first, second = (train(seed=1, worlds=8, steps=3).document for _ in range(2))
    assert first == second
    assert train(seed=2, worlds=8, steps=3).document != first


def test_weights_survive_their_file() -> None:
    again = Weights.parse(json.loads(json.dumps(_drawn().document())))
    assert again.document() == _drawn().document()
    with pytest.raises(InputError, match="train again"):
        Weights.parse({**_drawn().document(), "keys": ["speed"]})
    with pytest.raises(InputError, match="shapes"):
        Weights.parse({**_drawn().document(), "mix": [[0.0]]})


def test_the_policy_runs_the_shipped_weights_and_keeps_the_contract() -> None:
    document = json.loads(resources.files("steelyard.policies").joinpath("weights", FILE).read_text("utf-8"))
    assert document["made_by"].startswith("steelyard attention train --seed")
    assert shipped().document()["query"] == document["query"]
    check_policy(AttentionTrained, max_examples=40, seed=8, unit_free=True)


@pytest.mark.slow
def test_the_shipped_weights_come_from_their_command() -> None:
    """To the digits that another processor's sums leave."""
    from steelyard.runner.attention.training import train

    document = json.loads(resources.files("steelyard.policies").joinpath("weights", FILE).read_text("utf-8"))
    words = document["made_by"].split()
    numbers = {name: int(words[words.index(f"--{name}") + 1]) for name in ("seed", "worlds", "steps")}
    found = train(**numbers).document
    assert np.array(found["query"]) == pytest.approx(np.array(document["query"]), rel=1e-2, abs=1e-2)
    assert found["loss_after"] == pytest.approx(document["loss_after"], abs=0.005)


def test_worlds_have_four_devices_or_more_and_training_ones_are_not_held_out() -> None:
    held_out, training = held_out_worlds(1, 2), training_worlds(1, 8)
    assert len(held_out) == 2 * len(FAMILIES)
    assert all(len(scenario.cluster.devices) >= 4 for _, scenario in held_out)
    assert all(len(scenario.cluster.devices) >= 4 for scenario in training)
    kept = {scenario.model_dump_json(exclude={"name"}) for _, scenario in held_out}
    assert kept.isdisjoint({scenario.model_dump_json(exclude={"name"}) for scenario in training})
    assert [each.model_dump_json() for each in training] == [each.model_dump_json() for each in training_worlds(1, 8)]
    assert sum(family.trained for family in FAMILIES) < len(FAMILIES)


def test_the_simulated_share_is_that_of_the_cost_model_without_overlap() -> None:
    """What training looks at and what the score looks at are one thing: plans in the same order, within a percent."""
    scenario = world(FAMILIES[0], 9, "test", 1)
    policies = {label: policy for label, policy in contestants().items() if label in (EXACT, "uniform", "attention")}
    simulated = {label: throughput(scenario, policy) for label, policy in policies.items()}
    best = exact_s(scenario)
    for label, policy in policies.items():
        share = float(np.exp(-mean_loss([scenario], [best], policy)))
        assert simulated[label] / simulated[EXACT] == pytest.approx(share, rel=0.01)


def test_figures_are_quantiles() -> None:
    found = figures([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert found == {"median": 1.0, "p10": 1.0, "worst": 0.5, "at_optimum": pytest.approx(10 / 11, abs=1e-4)}


def test_tuned_parameters_are_no_worse_than_the_defaults_on_what_they_were_tuned_on() -> None:
    tuned = json.loads(resources.files("steelyard.policies").joinpath("weights", TUNED_FILES[0]).read_text("utf-8"))
    assert tuned["made_by"].startswith("steelyard attention tune --seed")
    scenarios = training_worlds(0, 12)
    exact = [exact_s(each) for each in scenarios]
    for name, each in tuned["policies"].items():
        losses = [mean_loss(scenarios, exact, make_policy(name, values)) for values in (each["parameters"], {})]
        assert losses[0] <= losses[1]
