"""The training methods: what the official programs gave for one mini-batch, and loops by hand.

`tests/data/golden_steps.json` holds logits, labels, and the losses, selections and gradients that
the programs named there gave for them (float64; BARE's works in float32).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from optuna_s2e.coteaching import _methods as methods

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_steps.json").read_text())
LABELS = torch.tensor(GOLDEN["labels"])
B = len(LABELS)
RATES = [0.0, 0.25, 0.5, 0.75]


def logits() -> Tensor:
    return torch.tensor(GOLDEN["logits"], dtype=torch.float64, requires_grad=True)


def gradient(step: methods.Step, x: Tensor) -> Tensor:
    return torch.autograd.grad(step.objectives.sum(), x)[0]


def used(weights: Tensor) -> list[set[int]]:
    return [set(torch.nonzero(row)[:, 0].tolist()) for row in weights]


def golden(method: str, forget_rate: float) -> dict[str, list]:  # type: ignore[type-arg]
    (case,) = [c for c in GOLDEN[method] if c["forget_rate"] == forget_rate]
    return dict(case)


@pytest.mark.parametrize("rate", RATES)
def test_coteaching_is_the_official_step_but_for_a_second_division(rate: float) -> None:
    case, x, n = golden("coteaching", rate), logits(), int((1 - rate) * B)
    step = methods.coteaching(x, LABELS, n)
    np.testing.assert_allclose(step.objectives.detach() / n, case["losses"], rtol=1e-8)
    np.testing.assert_allclose(gradient(step, x) / n, case["gradient"], rtol=1e-7, atol=1e-12)
    first, second = case["order"]
    assert used(step.weights) == [set(second[:n]), set(first[:n])]


@pytest.mark.parametrize("rate", RATES)
def test_coteaching_plus_is_the_official_step_but_for_a_second_division(rate: float) -> None:
    case, x = golden("coteaching_plus", rate), logits()
    disagreed = np.flatnonzero(np.not_equal(*x.detach().argmax(dim=2).numpy()))
    n = int((1 - rate) * len(disagreed))
    step = methods.coteaching_plus(x, LABELS, 1 - rate, softmax_twice=True)
    np.testing.assert_allclose(step.objectives.detach() / n, case["losses"], rtol=1e-8)
    np.testing.assert_allclose(gradient(step, x) / n, case["gradient"], rtol=1e-7, atol=1e-12)
    first, second = case["order"]
    assert used(step.weights) == [set(disagreed[second[:n]]), set(disagreed[first[:n]])]


@pytest.mark.parametrize("rate", RATES)
def test_jocor_is_the_official_step(rate: float) -> None:
    case, x, n = golden("jocor", rate), logits(), int((1 - rate) * B)
    step = methods.jocor(x, LABELS, n, agreement=0.3)
    assert step.objectives.sum().item() == pytest.approx(case["losses"][0], rel=1e-8)
    np.testing.assert_allclose(gradient(step, x), case["gradient"], rtol=1e-7, atol=1e-12)
    assert used(step.weights) == [set(case["order"][0][:n])] * 2


def test_bare_is_the_official_step() -> None:
    x = logits()
    step = methods.bare(x, LABELS)
    for i, case in enumerate(GOLDEN["bare"]):
        assert used(step.weights)[i] == set(case["selected"])
        assert step.objectives[i].item() == pytest.approx(case["losses"][0], rel=1e-6)
        np.testing.assert_allclose(gradient(methods.bare(x, LABELS), x)[i], case["gradient"],
                                   rtol=1e-4, atol=1e-7)  # fmt: skip


def test_forward_correction_is_the_official_loss() -> None:
    matrix = torch.tensor(GOLDEN["forward"]["transition_matrix"], dtype=torch.float64)
    step = methods.forward_corrected(logits(), LABELS, matrix)
    np.testing.assert_allclose(step.losses.detach(), GOLDEN["forward"]["losses"], rtol=1e-8)
    assert step.weights.unique().tolist() == [1 / B]


# --- methods without a program that runs here, against loops over the samples --------------------


def cross_entropy_by_hand(x: np.ndarray, label: int) -> float:
    return float(np.log(np.exp(x).sum()) - x[label])


def test_standard_decoupling_and_self_paced_are_means_of_cross_entropies() -> None:
    x = logits().detach()
    losses = np.array([
        [cross_entropy_by_hand(row, y) for row, y in zip(net, GOLDEN["labels"], strict=True)]
        for net in x.numpy()
    ])  # fmt: skip
    disagree = [i for i in range(B) if x[0, i].argmax() != x[1, i].argmax()]
    assert 0 < len(disagree) < B
    smallest = np.array([sorted(range(B), key=row.__getitem__)[:7] for row in losses])
    expected = {
        methods.standard: losses.mean(axis=1),
        methods.decoupling: losses[:, disagree].mean(axis=1),
        lambda *a: methods.self_paced(*a, 7): np.take_along_axis(losses, smallest, 1).mean(axis=1),
    }
    for method, objectives in expected.items():
        np.testing.assert_allclose(method(x, LABELS).objectives, objectives, rtol=1e-12)


@pytest.mark.parametrize("method", [
    methods.decoupling, lambda x, y: methods.coteaching_plus(x, y, 0.5)
])  # fmt: skip
def test_networks_that_agree_everywhere_are_not_trained(method) -> None:  # type: ignore[no-untyped-def]
    x = logits().detach()[:1].repeat(2, 1, 1).requires_grad_()
    step = method(x, LABELS)
    assert step.objectives.tolist() == [0.0, 0.0]
    assert gradient(step, x).abs().max() == 0.0


def test_coteaching_plus_as_printed_selects_by_the_plain_cross_entropy() -> None:
    x = logits().detach()
    disagree = [i for i in range(B) if x[0, i].argmax() != x[1, i].argmax()]
    losses = methods.cross_entropies(x, LABELS)
    n = len(disagree) // 2
    own = [set(sorted(disagree, key=lambda i: float(row[i]))[:n]) for row in losses]
    assert used(methods.coteaching_plus(x, LABELS, n / len(disagree)).weights) == own[::-1]


def test_bare_compares_with_mean_and_deviation_of_the_class_over_the_batch() -> None:
    x = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels, selected = torch.arange(12) % 3, []
    p = torch.softmax(x[0], dim=1).numpy()
    for ddof in (0, 1):
        for n_deviations in np.linspace(0.2, 1.8, 40):
            least = p.mean(axis=0) + n_deviations * p.std(axis=0, ddof=ddof)
            by_hand = {i for i in range(12) if p[i, labels[i]] >= least[labels[i]]}
            step = methods.bare(x, labels, n_deviations=n_deviations, ddof=ddof)
            assert used(step.weights) == [by_hand or set(range(12))]
            selected.append(by_hand)
    assert selected[:40] != selected[40:]  # the divisor matters


def test_bare_uses_all_samples_if_none_passes() -> None:
    step = methods.bare(torch.zeros(1, 6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), n_deviations=9.0)
    assert step.weights.unique().tolist() == pytest.approx([1 / 6])


def test_identity_as_transition_matrix_is_standard_training() -> None:
    eye = torch.eye(5, dtype=torch.float64)
    corrected = methods.forward_corrected(logits(), LABELS, eye)
    torch.testing.assert_close(corrected.losses, methods.standard(logits(), LABELS).losses)


def test_anchors_are_the_inputs_that_are_surest_of_a_class() -> None:
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    assert torch.equal(methods.anchor_matrix(p), p[[0, 3]])
    assert torch.equal(methods.anchor_matrix(p, percentile=67.0), p[[1, 2]])


def test_reweight_is_one_look_ahead_step_of_sgd() -> None:
    # The definition: u_i is how fast the clean loss falls with the weight of sample i, at 0.
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, x_clean, y, y_clean = normal(8, 4), normal(6, 4), LABELS[:8] % 3, LABELS[8:14] % 3
    w = normal(4, 3).requires_grad_()
    eps = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    losses = methods.cross_entropies((x @ w)[None], y)
    (g,) = torch.autograd.grad((eps * losses[0]).sum(), w, create_graph=True)
    ahead = methods.standard((x_clean @ (w - 0.7 * g))[None], y_clean).objectives.sum()
    u = -torch.autograd.grad(ahead, eps)[0]
    expected = u.clamp_min(0.0) / u.clamp_min(0.0).sum()
    clean = torch.autograd.grad(methods.standard((x_clean @ w)[None], y_clean).objectives.sum(), w)
    alignments = [
        float((torch.autograd.grad(loss, w, retain_graph=True)[0] * clean[0]).sum())
        for loss in losses[0]
    ]
    step = methods.reweighted(losses, torch.tensor([alignments], dtype=torch.float64))
    torch.testing.assert_close(step.weights[0], expected)
    assert 0 < int((step.weights > 0).sum()) < 8
    nothing = methods.reweighted(losses, -torch.ones(1, 8, dtype=torch.float64))
    assert nothing.objectives.tolist() == [0.0]
