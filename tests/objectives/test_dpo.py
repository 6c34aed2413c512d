"""Each loss at numbers worked by hand, its properties, and its gradient against the derivative by hand.

Used throughout: ln 2 = 0.693147; sigma(x) = 1 / (1 + e^-x); -ln sigma(x) = ln(1 + e^-x).
e^-0.2 = 0.818731 and ln 1.818731 = 0.598139; e^0.2 = 1.221403 and ln 2.221403 = 0.798139 (0.2 more, as it must be).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefine.errors import RecipeError
from prefine.objectives import dpo
from prefine.objectives.masked import Paired
from prefine.recipe.dpo import DpoRecipe, DpoSection
from prefine.recipe.loading import load_recipe
from prefine.training.stages.dpo import DpoStage, pair_outcome
from prefine.training.stages.pairs import PairOutcome

# One pair: chosen gains 1.5 nats on the reference (-10 + 11.5), rejected loses 0.5 (-12 + 11.5); margin 1.5 + 0.5 = 2.
# The other way round the margin is -2.
POLICY = Paired(torch.tensor([-10.0, -12.0]), torch.tensor([-12.0, -10.0]))
REFERENCE = Paired(torch.tensor([-11.5, -11.5]), torch.tensor([-11.5, -11.5]))

margins = st.floats(-60, 60)
betas = st.floats(0.01, 2)
smoothings = st.floats(0.01, 0.49)


def value(loss: Callable[..., Tensor], margin: float, *settings: float) -> float:
    return float(loss(torch.tensor([margin], dtype=torch.float64), *settings))


def slope(loss: Callable[..., Tensor], margin: float, *settings: float) -> float:
    """d loss / d margin by autograd."""
    at = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(at, *settings).sum(), at)
    return float(gradient)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def test_the_margin_is_what_the_policy_gained_on_the_reference() -> None:
    assert dpo.log_ratio_margin(POLICY, REFERENCE).tolist() == [2.0, -2.0]
    assert dpo.log_ratio_margin(POLICY, POLICY).tolist() == [0.0, 0.0]


# --- Numbers by hand, at margin 2 and -2 and beta 0.1, so beta margin = 0.2 and -0.2 ---------------------------------


def test_sigmoid() -> None:
    # -ln sigma(0.2) = ln(1 + e^-0.2) = 0.598139; -ln sigma(-0.2) = ln(1 + e^0.2) = 0.798139
    losses = dpo.sigmoid(dpo.log_ratio_margin(POLICY, REFERENCE), 0.1)
    assert losses.tolist() == pytest.approx([0.598139, 0.798139], abs=1e-6)


def test_conservative() -> None:
    # eps 0.1: 0.9 * 0.598139 + 0.1 * 0.798139 = 0.538325 + 0.079814 = 0.618139
    #          0.9 * 0.798139 + 0.1 * 0.598139 = 0.718325 + 0.059814 = 0.778139
    losses = dpo.conservative(dpo.log_ratio_margin(POLICY, REFERENCE), 0.1, 0.1)
    assert losses.tolist() == pytest.approx([0.618139, 0.778139], abs=1e-6)


def test_robust() -> None:
    # eps 0.1: (0.9 * 0.598139 - 0.1 * 0.798139) / 0.8 = (0.538325 - 0.079814) / 0.8 = 0.573139
    #          (0.9 * 0.798139 - 0.1 * 0.598139) / 0.8 = (0.718325 - 0.059814) / 0.8 = 0.823139
    losses = dpo.robust(dpo.log_ratio_margin(POLICY, REFERENCE), 0.1, 0.1)
    assert losses.tolist() == pytest.approx([0.573139, 0.823139], abs=1e-6)


def test_hinge() -> None:
    # max(0, 1 - 0.2) = 0.8; max(0, 1 + 0.2) = 1.2; and at beta 0.5 max(0, 1 - 1) = 0, max(0, 1 + 1) = 2
    margin = dpo.log_ratio_margin(POLICY, REFERENCE)
    assert dpo.hinge(margin, 0.1).tolist() == pytest.approx([0.8, 1.2])
    assert dpo.hinge(margin, 0.5).tolist() == [0.0, 2.0]


def test_ipo() -> None:
    # 1 / (2 * 0.1) = 5: (2 - 5)^2 = 9; (-2 - 5)^2 = 49
    assert dpo.ipo(dpo.log_ratio_margin(POLICY, REFERENCE), 0.1).tolist() == pytest.approx([9.0, 49.0])


def test_simpo() -> None:
    # Means of -1.0 over -1.5 at beta 2, gamma 0.8: 2 * 0.5 - 0.8 = 0.2, so 0.598139.
    # The other way round 2 * -0.5 - 0.8 = -1.8: ln(1 + e^1.8) = ln(1 + 6.049647) = ln 7.049647 = 1.952977
    means = Paired(torch.tensor([-1.0, -1.5]), torch.tensor([-1.5, -1.0]))
    assert dpo.simpo(means, 2.0, 0.8).tolist() == pytest.approx([0.598139, 1.952977], abs=1e-6)


def test_chosen_nll() -> None:
    # 12 nats over 8 tokens are 1.5 nats a token
    assert dpo.chosen_nll(torch.tensor([-12.0, -3.0]), torch.tensor([8, 3])).tolist() == [1.5, 1.0]


# --- Properties ------------------------------------------------------------------------------------------------------


@given(betas)
@settings(max_examples=30, deadline=None)
def test_where_policy_and_reference_agree_the_loss_is_ln_2(beta: float) -> None:
    assert value(dpo.sigmoid, 0.0, beta) == pytest.approx(math.log(2))
    assert value(dpo.conservative, 0.0, beta, 0.3) == pytest.approx(math.log(2))
    assert value(dpo.robust, 0.0, beta, 0.3) == pytest.approx(math.log(2))


@given(margins, betas)
@settings(max_examples=50, deadline=None)
def test_without_smoothing_conservative_and_robust_are_sigmoid(margin: float, beta: float) -> None:
    plain = value(dpo.sigmoid, margin, beta)
    assert value(dpo.conservative, margin, beta, 0.0) == pytest.approx(plain)
    assert value(dpo.robust, margin, beta, 0.0) == pytest.approx(plain)


@given(margins, betas, smoothings)
@settings(max_examples=100, deadline=None)
def test_conservative_lies_between_the_loss_and_that_of_the_flipped_label(
    margin: float, beta: float, smoothing: float
) -> None:
    right, flipped = value(dpo.sigmoid, margin, beta), value(dpo.sigmoid, -margin, beta)
    loss = value(dpo.conservative, margin, beta, smoothing)
    assert loss == pytest.approx((1 - smoothing) * right + smoothing * flipped)
    assert min(right, flipped) - 1e-9 <= loss <= max(right, flipped) + 1e-9


@given(margins, betas, smoothings)
@settings(max_examples=100, deadline=None)
def test_robust_is_unbiased_under_flipped_labels(margin: float, beta: float, smoothing: float) -> None:
    """With labels flipped at rate eps the expected robust loss is the loss on clean labels."""
    expected = (1 - smoothing) * value(dpo.robust, margin, beta, smoothing)
    expected += smoothing * value(dpo.robust, -margin, beta, smoothing)
    assert expected == pytest.approx(value(dpo.sigmoid, margin, beta), rel=1e-6, abs=1e-9)


@given(betas, st.floats(-40, 40))
@settings(max_examples=50, deadline=None)
def test_ipo_is_least_at_half_of_one_over_beta(beta: float, away: float) -> None:
    target = 1 / (2 * beta)
    assert value(dpo.ipo, target, beta) == pytest.approx(0, abs=1e-12)
    assert value(dpo.ipo, target + away, beta) == pytest.approx(away**2, abs=1e-6)
    assert slope(dpo.ipo, target, beta) == pytest.approx(0, abs=1e-9)


@given(betas, st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_hinge_is_zero_beyond_one_over_beta(beta: float, beyond: float) -> None:
    assert value(dpo.hinge, 1 / beta + beyond, beta) == 0
    assert slope(dpo.hinge, 1 / beta + beyond, beta) == 0
    assert value(dpo.hinge, 1 / beta - beyond, beta) == pytest.approx(beta * beyond)
    assert slope(dpo.hinge, 1 / beta - beyond, beta) == pytest.approx(-beta)


@given(st.floats(-5, 0), st.floats(-5, 0), betas, st.floats(0, 3))
@settings(max_examples=50, deadline=None)
def test_simpo_is_the_sigmoid_loss_of_means_less_its_target(
    chosen: float, rejected: float, beta: float, target: float
) -> None:
    means = Paired(torch.tensor([chosen], dtype=torch.float64), torch.tensor([rejected], dtype=torch.float64))
    expected = value(dpo.sigmoid, (beta * (chosen - rejected) - target) / beta, beta)
    assert float(dpo.simpo(means, beta, target)) == pytest.approx(expected, rel=1e-9)


@given(margins, st.floats(0.1, 20), betas)
@settings(max_examples=50, deadline=None)
def test_a_larger_margin_never_costs_more(margin: float, more: float, beta: float) -> None:
    for loss in (dpo.sigmoid, dpo.hinge):
        assert value(loss, margin + more, beta) <= value(loss, margin, beta)


@pytest.mark.parametrize("margin", [-1e6, -1e3, 1e3, 1e6])
def test_losses_stay_finite_at_extreme_margins(margin: float) -> None:
    at = torch.tensor([margin], requires_grad=True)
    for losses in (dpo.sigmoid(at, 1.0), dpo.conservative(at, 1.0, 0.1), dpo.robust(at, 1.0, 0.1), dpo.hinge(at, 1.0)):
        assert torch.isfinite(losses).all()
        (gradient,) = torch.autograd.grad(losses.sum(), at)
        assert torch.isfinite(gradient).all()
    assert value(dpo.sigmoid, margin, 1.0) == pytest.approx(max(0.0, -margin))


# --- Gradients -------------------------------------------------------------------------------------------------------


@given(margins, betas, smoothings)
@settings(max_examples=100, deadline=None)
def test_gradients_by_hand(margin: float, beta: float, smoothing: float) -> None:
    """d/dm of -ln sigma(beta m) is -beta sigma(-beta m); of its flipped twin, beta sigma(beta m)."""
    right, flipped = -beta * sigma(-beta * margin), beta * sigma(beta * margin)
    assert slope(dpo.sigmoid, margin, beta) == pytest.approx(right)
    mixed = (1 - smoothing) * right + smoothing * flipped
    assert slope(dpo.conservative, margin, beta, smoothing) == pytest.approx(mixed, abs=1e-12)
    mixed = ((1 - smoothing) * right - smoothing * flipped) / (1 - 2 * smoothing)
    assert slope(dpo.robust, margin, beta, smoothing) == pytest.approx(mixed, abs=1e-12)
    assert slope(dpo.ipo, margin, beta) == pytest.approx(2 * (margin - 1 / (2 * beta)), abs=1e-9)


def test_the_gradient_raises_the_chosen_and_lowers_the_rejected_answer_alike() -> None:
    policy = Paired(torch.tensor([-10.0], requires_grad=True), torch.tensor([-12.0], requires_grad=True))
    reference = Paired(torch.tensor([-11.5], requires_grad=True), torch.tensor([-11.5]))
    dpo.sigmoid(dpo.log_ratio_margin(policy, reference), 0.1).sum().backward()
    # -beta sigma(-0.2) = -0.1 * 0.450166 = -0.0450166
    assert policy.chosen.grad is not None
    assert policy.rejected.grad is not None
    assert float(policy.chosen.grad) == pytest.approx(-0.0450166, abs=1e-7)
    assert float(policy.rejected.grad) == pytest.approx(0.0450166, abs=1e-7)


def test_gradients_of_simpo_and_of_the_nll_term() -> None:
    chosen, rejected = torch.tensor([-1.0], requires_grad=True), torch.tensor([-1.5], requires_grad=True)
    dpo.simpo(Paired(chosen, rejected), 2.0, 0.8).sum().backward()
    # -beta sigma(-0.2) = -2 * 0.450166 = -0.900332
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-0.900332, abs=1e-6)
    assert float(rejected.grad) == pytest.approx(0.900332, abs=1e-6)
    summed = torch.tensor([-12.0], requires_grad=True)
    dpo.chosen_nll(summed, torch.tensor([8])).sum().backward()
    assert summed.grad is not None
    assert float(summed.grad) == -0.125


def test_each_pair_has_its_own_loss() -> None:
    """(B,) in, (B,) out: nothing is reduced and no pair sees another."""
    margin = torch.tensor([2.0, -2.0, 0.0])
    alone = [torch.tensor([each]) for each in margin.tolist()]
    for losses in (
        lambda m: dpo.sigmoid(m, 0.1),
        lambda m: dpo.conservative(m, 0.1, 0.1),
        lambda m: dpo.robust(m, 0.1, 0.1),
        lambda m: dpo.hinge(m, 0.1),
        lambda m: dpo.ipo(m, 0.1),
    ):
        assert torch.equal(losses(margin), torch.cat([losses(each) for each in alone]))


# --- Several losses ---------------------------------------------------------------------------------------------------


def test_bco_pair_by_hand() -> None:
    """beta h is ln 3 for both: sigma is 3/4 for the chosen answer and 1/4 for the rejected one."""
    ratios = Paired(torch.tensor([2 * math.log(3)]), torch.tensor([2 * math.log(3)]))
    assert dpo.bco_pair(ratios, 0.5).item() == pytest.approx(math.log(4 / 3) + math.log(4))


SEVERAL = {"sigmoid": 0.8, "bco_pair": 0.2, "ipo": 0.5, "sft": 1.0}


def test_several_losses_are_added_with_their_weights() -> None:
    """Each is what it is alone; the margin is that of sums over answers."""
    policy = Paired(torch.tensor([-3.0, -8.0]), torch.tensor([-5.0, -6.0]))
    reference = Paired(torch.tensor([-4.0, -7.0]), torch.tensor([-4.5, -6.5]))
    tokens = Paired(torch.tensor([2.0, 4.0]), torch.tensor([5.0, 3.0]))

    def outcome(loss: object) -> PairOutcome:
        return pair_outcome(DpoSection.model_validate({"loss": loss, "beta": 0.1}), policy, reference, tokens)

    found = outcome(SEVERAL)
    alone = {name: outcome(name).loss for name in SEVERAL if name != "sft"} | {"sft": -policy.chosen / tokens.chosen}
    assert found.terms.keys() == SEVERAL.keys()
    for name, values in alone.items():
        torch.testing.assert_close(found.terms[name], values)
    torch.testing.assert_close(found.loss, sum(weight * alone[name] for name, weight in SEVERAL.items()))
    torch.testing.assert_close(found.margin, outcome("sigmoid").margin)
    assert not outcome("bco_pair").terms


@pytest.mark.parametrize(
    ("section", "rule"),
    [
        ({"loss": {"sigmoid": 1.0}}, "is a mapping of one"),
        ({"loss": {}}, "is a mapping of one"),
        ({"loss": {"sigmoid": 1.0, "sft": 0.0}}, "greater than 0"),
        ({"loss": {"sigmoid": 1.0, "simpo": 1.0}}, "dpo.loss is \"simpo\", but must be 'sigmoid'"),
        ({"loss": "sft"}, "dpo.loss is"),
        ({"loss": "sigmod"}, "Did you mean sigmoid?"),
        ({"loss": ["sigmoid", "sft"]}, "several losses are written with their weights: {sigmoid: 1.0, sft: 0.5}"),
        ({"loss": {"sigmoid": 1.0, "sft": 1.0}, "nll_weight": 0.5}, "give sft this weight"),
        ({"loss": {"ipo": 1.0, "sigmoid": 1.0}}, "beta is not set with loss {'ipo': 1.0, 'sigmoid': 1.0}"),
        ({"loss": {"ipo": 1, "hinge": 1}, "length_normalized": True}, "ipo's is 1.0 and that of the others 5.0; set"),
        ({"loss": {"sigmoid": 1.0, "robust": 1.0}}, "label_smoothing is 0.0 with loss"),
        ({"loss": {"sigmoid": 1.0, "bco_pair": 1.0}, "label_smoothing": 0.1}, "label_smoothing is 0.1 with loss"),
        ({"loss": {"ipo": 1.0, "sft": 1.0}, "length_normalized": True}, "means over tokens anyway"),
        ({"loss": {"sigmoid": 1.0, "sft": 1.0}, "simpo_margin": 0.5}, "only simpo uses it"),
    ],
)
def test_what_several_losses_cannot_be(section: dict[str, object], rule: str, tmp_path: Path) -> None:
    """In a file and in --set: one line each, which names the field."""
    path = tmp_path / "dpo.yaml"
    path.write_text(json.dumps({"dpo": section}))
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, [], DpoRecipe)
    (line,) = raised.value.lines
    assert rule in line
    assert "dpo" in line


def test_ipo_with_sft_has_the_beta_and_the_margin_of_ipo() -> None:
    """Sums fall by 1 and 3 nats over 2 and 5 tokens: -0.5 + 0.6 a token."""
    both = DpoSection.model_validate({"loss": {"ipo": 1.0, "sft": 0.5}})
    assert both.beta == DpoSection.model_validate({"loss": "ipo"}).beta == 1.0
    one, zero = (Paired(torch.tensor([a]), torch.tensor([b])) for a, b in ((-1.0, -3.0), (0.0, 0.0)))
    found = pair_outcome(both, one, zero, Paired(torch.tensor([2.0]), torch.tensor([5.0])))
    assert found.margin.item() == pytest.approx(0.1)
    assert DpoSection.model_validate({"loss": {"ipo": 1.0, "hinge": 1.0}, "beta": 0.5}).beta == 0.5


@pytest.mark.parametrize(
    ("loss", "setting"),
    [
        ("hinge", "dpo.nll_weight"),
        ({"sigmoid": 1.0, "hinge": 1.0}, "a weight of sft in dpo.loss"),
        ({"sigmoid": 1.0, "sft": 0.1}, "a larger weight of sft in dpo.loss"),
    ],
)
def test_the_guard_on_chosen_answers_names_a_setting_that_is_accepted(loss: object, setting: str) -> None:
    (limit,) = DpoStage(DpoRecipe.model_validate({"dpo": {"loss": loss}})).guards()
    assert f"too; {setting} or a lower learning rate" in str(limit)


def test_several_losses_on_the_command_line() -> None:
    made = load_recipe(None, ["dpo.loss={sigmoid: 0.8, sft: 1}"], DpoRecipe)
    assert made.dpo.weights == {"sigmoid": 0.8, "sft": 1.0}
    assert made.dpo.beta == 0.1
