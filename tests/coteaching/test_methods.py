"""The training methods: what the official programs gave for one mini-batch, and loops by hand.

`tests/data/golden_steps.json` holds logits, labels, and the losses, selections and gradients that
the programs named there gave for them (float64; BARE's works in float32).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from optuna_s2e.coteaching import (
    METHODS,
    Bare,
    Coteaching,
    CoteachingPlus,
    Decoupling,
    ForwardCorrection,
    Jocor,
    find_method,
)
from optuna_s2e.coteaching._methods import method_settings, reweighted
from optuna_s2e.coteaching._steps import counts_kept, cross_entropies

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden_steps.json").read_text())
LABELS = torch.tensor(GOLDEN["labels"])
B = len(LABELS)
RATES = [0.0, 0.25, 0.5, 0.75]


def _logits():
    return torch.tensor(GOLDEN["logits"], dtype=torch.float64, requires_grad=True)


def _step(method, x, labels=LABELS, keep_rate=1.0):
    """Return objectives (2,), samples used by each network, and the gradient by the logits."""
    counts = torch.from_numpy(counts_kept(np.array([keep_rate]), len(labels)))
    step = method.step(x[None], labels[None], counts)
    objectives = step.objectives[0]
    used = [set(torch.nonzero(row)[:, 0].tolist()) for row in step.weights[0]]
    gradient = torch.autograd.grad(objectives.sum(), x)[0] if x.requires_grad else None
    return objectives.detach(), used, gradient


def _golden(method, forget_rate):
    (case,) = [c for c in GOLDEN[method] if c["forget_rate"] == forget_rate]
    return case


# --- golden steps -------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("divides", [True, False])
def test_coteaching_is_the_official_step(rate, divides):
    case, n = _golden("coteaching", rate), int((1 - rate) * B)
    objectives, used, gradient = _step(Coteaching(divides), _logits(), keep_rate=1 - rate)
    again = 1 if divides else n  # the official program divides by n once more
    np.testing.assert_allclose(objectives, again * np.array(case["losses"]), rtol=1e-8)
    np.testing.assert_allclose(gradient, again * np.array(case["gradient"]), rtol=1e-7, atol=1e-11)
    first, second = case["order"]
    assert used == [set(second[:n]), set(first[:n])]


@pytest.mark.parametrize("rate", RATES)
def test_coteaching_plus_is_the_official_step(rate):
    case, x = _golden("coteaching_plus", rate), _logits()
    disagreed = np.flatnonzero(np.not_equal(*x.detach().argmax(dim=2).numpy()))
    n = int((1 - rate) * len(disagreed))
    method = CoteachingPlus(softmax_twice=True, divide_again=True)
    objectives, used, gradient = _step(method, x, keep_rate=1 - rate)
    np.testing.assert_allclose(objectives, case["losses"], rtol=1e-8)
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-7, atol=1e-12)
    first, second = case["order"]
    assert used == [set(disagreed[second[:n]]), set(disagreed[first[:n]])]


@pytest.mark.parametrize("rate", RATES)
def test_jocor_is_the_official_step(rate):
    case, n = _golden("jocor", rate), int((1 - rate) * B)
    objectives, used, gradient = _step(Jocor(0.3), _logits(), keep_rate=1 - rate)
    assert objectives.sum().item() == pytest.approx(case["losses"][0], rel=1e-8)
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-7, atol=1e-12)
    assert used == [set(case["order"][0][:n])] * 2


@pytest.mark.parametrize("case", GOLDEN["decoupling"]["cases"])
def test_decoupling_is_the_official_step(case):  # in the second case a single sample is left
    labels = torch.tensor(GOLDEN["decoupling"]["labels"])  # classes of equal size have weight 1
    x = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    objectives, used, gradient = _step(Decoupling(least_share=0.1), x, labels)
    np.testing.assert_allclose(objectives, case["losses"], rtol=1e-6)
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-5, atol=1e-8)
    assert used == [set(case["selected"])] * 2


def test_bare_is_the_official_step():
    objectives, used, gradient = _step(Bare(), _logits())
    for i, case in enumerate(GOLDEN["bare"]):
        assert used[i] == set(case["selected"])
        assert objectives[i].item() == pytest.approx(case["losses"][0], rel=1e-6)
        np.testing.assert_allclose(gradient[i], case["gradient"], rtol=1e-4, atol=1e-7)


def test_forward_correction_is_the_official_loss():
    method = ForwardCorrection(GOLDEN["forward"]["transition_matrix"])
    step = method.step(_logits()[None], LABELS[None], None)
    np.testing.assert_allclose(step.losses[0].detach(), GOLDEN["forward"]["losses"], rtol=1e-8)
    assert step.weights.unique().tolist() == [1 / B]


# --- loops by hand ------------------------------------------------------------------------------


def _ce(x, label):
    return float(np.log(np.exp(x - x.max()).sum()) + x.max() - x[label])


def _softmax(x):
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def _best(losses, among, keep_rate):
    """Return the small-loss share of some positions; ties in their order."""
    n = max(1, int(keep_rate * len(among) + 1e-9)) if among else 0
    return sorted(among, key=lambda i: (losses[i], i))[:n]


def _by_hand(name, x, labels, keep_rate):
    """Return the objectives of both networks, sample by sample."""
    everyone = list(range(len(labels)))
    ce = [[_ce(row, y) for row, y in zip(net, labels, strict=True)] for net in x]
    differ = [i for i in everyone if x[0][i].argmax() != x[1][i].argmax()]
    if name == "standard":
        chosen = [everyone, everyone]
    elif name == "mentornet":
        chosen = [_best(ce[0], everyone, keep_rate), _best(ce[1], everyone, keep_rate)]
    elif name == "coteaching":
        chosen = [_best(ce[1], everyone, keep_rate), _best(ce[0], everyone, keep_rate)]
    elif name == "coteaching+":
        chosen = [_best(ce[1], differ, keep_rate), _best(ce[0], differ, keep_rate)]
    elif name == "decoupling":
        chosen = [differ, differ]
    elif name == "jocor":
        weight, joint = Jocor().agreement, []
        for i in everyone:
            p, q = _softmax(x[0][i]), _softmax(x[1][i])
            apart = (p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()
            joint.append((1 - weight) * (ce[0][i] + ce[1][i]) + weight * apart)
        best = _best(joint, everyone, keep_rate)
        return [np.mean([joint[i] for i in best]) / 2] * 2
    elif name == "bare":
        chosen = []
        for net in x:
            p = np.array([_softmax(row) for row in net])
            least = p.mean(axis=0) + p.std(axis=0, ddof=1)
            chosen.append([i for i in everyone if p[i, labels[i]] >= least[labels[i]]] or everyone)
    return [float(np.mean([ce[i][j] for j in chosen[i]])) if chosen[i] else 0.0 for i in (0, 1)]


NAMES = ["standard", "mentornet", "coteaching", "coteaching+", "decoupling", "jocor", "bare"]


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_loops_over_the_samples(name):
    rng, found = np.random.default_rng(1), set()
    for keep_rate in (1.0, 0.7, 0.29, 0.01):
        for size in (2, 9, 30):
            x = rng.normal(size=(2, size, 4)) + rng.normal(size=(1, size, 4))
            x[0, 0] = x[0, 1]  # of two samples with one label, a tie
            labels = rng.integers(0, 4, size)
            labels[1] = labels[0]
            rate = keep_rate if METHODS[name].uses_schedule else 1.0
            objectives, *_ = _step(METHODS[name], torch.from_numpy(x), torch.tensor(labels), rate)
            expected = _by_hand(name, x, labels, rate)
            np.testing.assert_allclose(objectives, expected, rtol=1e-12)
            found.add(tuple(expected))
    assert len(found) > 2


@pytest.mark.parametrize("name", NAMES)
def test_trials_of_a_group_do_not_change_one_another(name):
    rng, rates = np.random.default_rng(2), np.array([0.9, 0.4, 0.6])
    x = torch.from_numpy(rng.normal(size=(3, 2, 12, 4)))
    labels = torch.from_numpy(rng.integers(0, 4, (3, 12)))
    together = METHODS[name].step(x, labels, torch.from_numpy(counts_kept(rates, 12)))
    for k, rate in enumerate(rates):
        counts = torch.from_numpy(counts_kept(rates[[k]], 12))
        alone = METHODS[name].step(x[[k]], labels[[k]], counts)
        assert torch.equal(together.losses[k], alone.losses[0]), rate
        assert torch.equal(together.weights[k], alone.weights[0]), rate


@pytest.mark.parametrize("name", ["decoupling", "coteaching+"])
def test_networks_that_agree_everywhere_are_not_trained(name):
    x = _logits().detach()[:1].repeat(2, 1, 1).requires_grad_()
    objectives, used, gradient = _step(METHODS[name], x, keep_rate=0.5)
    assert (objectives.tolist(), used) == ([0.0, 0.0], [set(), set()])
    assert gradient.abs().max() == 0.0


def test_decoupling_divides_by_at_least_the_least_share():
    x = _logits()
    plain, used, _ = _step(Decoupling(), x)
    n = len(used[0])
    assert 0 < n < 0.9 * B
    divided, *_ = _step(Decoupling(least_share=0.9), x)
    torch.testing.assert_close(divided, plain * n / (0.9 * B))
    torch.testing.assert_close(_step(Decoupling(least_share=0.01), x)[0], plain)


def test_bare_knows_both_divisors_of_the_variance():
    x = torch.randn(2, 12, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels, used = torch.arange(12) % 3, []
    for scale in np.linspace(0.2, 3.0, 60):
        for ddof in (0, 1):
            p = torch.softmax(scale * x, dim=2).numpy()
            least = p.mean(axis=1) + p.std(axis=1, ddof=ddof)
            expected = [
                {i for i in range(12) if p[k, i, labels[i]] >= least[k, labels[i]]}
                or set(range(12))
                for k in (0, 1)
            ]
            used.append(_step(Bare(ddof), scale * x, labels)[1])
            assert used[-1] == expected
    assert used[::2] != used[1::2]  # the divisor matters


def test_bare_uses_a_mini_batch_of_one_sample():
    x = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0))
    objectives, used, _ = _step(Bare(), x, torch.tensor([1]))
    assert used == [{0}, {0}]
    torch.testing.assert_close(objectives, -x.log_softmax(dim=2)[:, 0, 1])


def test_bare_uses_all_samples_if_none_passes():
    labels = torch.tensor([0, 1, 0, 1])
    x = torch.tensor([[[0.0, 1.0], [1.0, 0.0]] * 2] * 2)  # each label is the less probable one
    assert _step(Bare(), x, labels)[1] == [{0, 1, 2, 3}] * 2


def test_warm_ups_end_and_clipping_first_stops_the_gradient():
    assert CoteachingPlus(2).at(1) == Coteaching()
    assert CoteachingPlus(2).at(2) == CoteachingPlus(2)
    assert CoteachingPlus(2, divide_again=True).at(0) == Coteaching(divide_again=True)
    assert [Decoupling(1).at(t).name for t in (0, 1)] == ["standard", "decoupling"]
    x = torch.tensor([[[0.0, 17.0]]] * 2, dtype=torch.float64, requires_grad=True)
    rows = ((0.9, 0.1), (0.0, 1.0))
    for clips in (False, True):
        method = ForwardCorrection(rows, clip_first=clips)
        gradient = _step(method, x, torch.tensor([0]))[2]
        assert (gradient.abs().max() == 0.0) == clips


def test_identity_as_transition_matrix_is_standard_training():
    corrected = _step(ForwardCorrection(torch.eye(5).tolist()), _logits())
    standard = _step(METHODS["standard"], _logits())
    torch.testing.assert_close(corrected[0], standard[0])
    torch.testing.assert_close(corrected[2], standard[2])


def test_reweight_is_one_look_ahead_step_of_sgd():
    # The definition: u_i is how fast the clean loss falls with the weight of sample i, at 0.
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def losses(x, w, y):
        return cross_entropies((x @ w)[None, None].expand(-1, 2, -1, -1), y[None])[0, 0]

    x, x_clean, y, y_clean = normal(8, 4), normal(6, 4), LABELS[:8] % 3, LABELS[8:14] % 3
    w = normal(4, 3).requires_grad_()
    eps = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad((eps * losses(x, w, y)).sum(), w, create_graph=True)
    u = -torch.autograd.grad(losses(x_clean, w - 0.7 * g, y_clean).mean(), eps)[0]
    (clean,) = torch.autograd.grad(losses(x_clean, w, y_clean).mean(), w)
    alignments = torch.stack([
        (torch.autograd.grad(loss, w, retain_graph=True)[0] * clean).sum()
        for loss in losses(x, w, y)
    ])  # fmt: skip
    torch.testing.assert_close(u, 0.7 * alignments)
    step = reweighted(losses(x, w, y)[None, None], alignments[None, None])
    torch.testing.assert_close(step.weights[0, 0], u.clamp_min(0) / u.clamp_min(0).sum())
    assert 0 < int((step.weights > 0).sum()) < 8
    nothing = reweighted(losses(x, w, y)[None, None], -torch.ones(1, 1, 8))
    assert nothing.objectives.tolist() == [[0.0]]


# --- names and options --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        *METHODS.values(), Jocor(0.9), Coteaching(True), CoteachingPlus(3, softmax_twice=True),
        Decoupling(2, 0.1), Bare(0), ForwardCorrection("true", clip_first=True),
        ForwardCorrection(((0.5, 0.5), (0.25, 0.75)), percentile=97),
    ],
)  # fmt: skip
def test_settings_make_the_same_method_again(method):
    settings = json.loads(json.dumps(method_settings(method)))
    assert find_method(settings) == method
    assert isinstance(settings, str) == (method in METHODS.values())


def test_single_is_another_name_of_mentornet():
    assert find_method("single") == find_method("mentornet")
    assert method_settings(find_method("single")) == "mentornet"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: find_method("co-teaching"), "method must be one of 'standard', .*'co-teaching'"),
        (lambda: find_method(None), "method must be one of"),
        (lambda: find_method({"name": "jocor", "lambda": 1}), "unknown options: .*lambda"),
        (lambda: find_method({}), "method must be one of .* but got None"),
        (lambda: Jocor(1.5), r"agreement must be a number in \[0, 1\], but got 1.5"),
        (lambda: CoteachingPlus(-1), "warm_up must be an int of at least 0, but got -1"),
        (lambda: Decoupling(least_share=2), "least_share"),
        (lambda: Bare(2), "ddof"),
        (lambda: ForwardCorrection("known"), "matrix must be one of 'estimated', 'true'"),
        (lambda: ForwardCorrection(((1, 1), (0, 1))), "rows that sum to 1"),
        (lambda: ForwardCorrection(percentile=101), "percentile"),
    ],
)
def test_unknown_methods_and_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
