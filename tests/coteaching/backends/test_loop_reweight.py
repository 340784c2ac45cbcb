"""Reweight against its definition: the clean loss after a look-ahead step, sample by sample.

And against another program: `golden_steps.json` holds the weights, the loss and the gradient that
it gave for a linear network of two classes.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from optuna_s2e.coteaching import METHODS, NoisyData, TrainingConfig, make_network, train_batch
from optuna_s2e.coteaching._methods import reweighted
from optuna_s2e.coteaching._steps import cross_entropies
from optuna_s2e.coteaching.backends import TrainingSetup
from optuna_s2e.coteaching.backends._loop_reweight import ReweightTrainer

GOLDEN = json.loads((Path(__file__).parents[2] / "data" / "golden_steps.json").read_text())
CONFIG = TrainingConfig(batch_size=5, learning_rate=0.02, dtype="float64", decay_start=1.0)


def _smooth(input_shape, n_classes):
    return nn.Sequential(nn.Linear(input_shape[0], 6), nn.Tanh(), nn.Linear(6, n_classes))


def _normalised(input_shape, n_classes):
    return nn.Sequential(
        nn.Linear(input_shape[0], 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, n_classes)
    )


def _reference(data, seed, n_epochs):
    """Return validation losses (T, 2) and label precision (T, 2)."""
    *inits, order, clean = map(int, np.random.SeedSequence(seed).generate_state(4, np.uint64))
    nets = [make_network(_smooth, (5,), 3, seed=init).double() for init in inits]
    adams = [torch.optim.Adam(net.parameters(), lr=0.02) for net in nets]
    orders = [torch.Generator().manual_seed(s) for s in (order, clean)]
    x, y, ce = data.x.double(), data.noisy_labels, nn.functional.cross_entropy
    losses, precisions = [], []
    for _ in range(n_epochs):
        weight, right = np.zeros(2), np.zeros(2)
        for batch in torch.randperm(23, generator=orders[0])[:20].view(4, 5):
            of_clean = torch.randperm(9, generator=orders[1])[:5]
            for i, (net, adam) in enumerate(zip(nets, adams, strict=True)):
                names, w = zip(*net.named_parameters(), strict=True)
                eps = torch.zeros(5, dtype=torch.float64, requires_grad=True)
                total = (eps * ce(net(x[batch]), y[batch], reduction="none")).sum()
                gradients = torch.autograd.grad(total, w, create_graph=True)
                ahead = dict(zip(names, (p - g for p, g in zip(w, gradients, strict=True)),
                                 strict=True))  # fmt: skip
                logits = torch.func.functional_call(net, ahead, (data.x_val[of_clean].double(),))
                (slope,) = torch.autograd.grad(ce(logits, data.y_val[of_clean]), eps)
                u = (-slope).clamp_min(0)
                own = u / u.sum() if u.sum() > 0 else u
                weight[i] += own.sum()
                right[i] += own[y[batch] == data.clean_labels[batch]].sum()
                adam.zero_grad()
                (own * ce(net(x[batch]), y[batch], reduction="none")).sum().backward()
                adam.step()
        precisions.append(right / weight)
        with torch.no_grad():
            losses.append([float(ce(net(data.x_val.double()), data.y_val)) for net in nets])
    return np.array(losses), np.array(precisions)


def test_weights_follow_the_clean_loss_after_a_look_ahead_step(tiny):
    results = train_batch(
        np.ones((2, 4)), [0, 1], data=tiny, network=_smooth, config=CONFIG, device="cpu",
        method="reweight", watch_samples=True,
    )  # fmt: skip
    for seed, result in enumerate(results):
        losses, precisions = _reference(tiny, seed, 4)
        np.testing.assert_allclose(result.curves.loss, losses, rtol=0, atol=1e-9)
        np.testing.assert_allclose(result.curves.label_precision, precisions, atol=1e-9)
        assert 0 < np.nanmean(result.samples.trained_share) < 1


def test_a_step_is_that_of_another_program():
    case, (x, x_clean) = GOLDEN["reweight"], np.array(GOLDEN["logits"])
    data = NoisyData.from_arrays(x, case["labels"], x_clean, case["clean_labels"])
    config = TrainingConfig(batch_size=24, dtype="float64")
    evaluation = data.x_val, data.y_val
    setup = TrainingSetup(
        data, lambda shape, n: nn.Linear(*shape, n), config, evaluation, False, METHODS["reweight"]
    )
    trainer = ReweightTrainer(setup, [0], data.noisy_labels)
    for net in trainer._networks:  # its logit is that of the second class
        net.weight.data[:] = torch.tensor([[0.0] * 5, case["coefficients"]])
        net.bias.data[:] = torch.tensor([0.0, case["bias"]])
    logits = torch.stack([net(data.x.double()) for net in trainer._networks])
    losses = cross_entropies(logits[None], data.noisy_labels[None])
    step = reweighted(losses, trainer._alignments(losses))
    step.objectives.sum().backward()
    gradients = [[*net.weight.grad[1], net.bias.grad[1]] for net in trainer._networks]
    for i in (0, 1):
        np.testing.assert_allclose(step.weights[0, i], case["weights"], rtol=1e-5)
        np.testing.assert_allclose(step.objectives[0, i].item(), case["loss"], rtol=1e-5)
        np.testing.assert_allclose(gradients[i], case["gradient"], rtol=1e-5)


def test_batch_normalisation_and_frozen_weights_train(tiny):
    def network(input_shape, n_classes):
        net = _normalised(input_shape, n_classes)
        net[0].requires_grad_(False)
        return net

    (result,) = train_batch(
        np.ones((1, 3)), [0], data=tiny, network=network, config=CONFIG, device="cpu",
        method="reweight", keep_networks=True,
    )  # fmt: skip
    assert result.failure is None
    assert np.isfinite(result.curves.loss).all()
    assert int(result.networks[0][1].num_batches_tracked) == 3 * 4 * 2  # training and clean data
