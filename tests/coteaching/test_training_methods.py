"""Whole trainings by every method: against a loop written by hand, and on every backend."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from optuna_s2e.coteaching import (
    METHODS,
    Coteaching,
    CoteachingPlus,
    Decoupling,
    ForwardCorrection,
    Jocor,
    NoisyData,
    TrainingConfig,
    make_network,
    train_batch,
)

RATES = np.array([[1.0, 0.9, 0.5], [0.8, 0.62, 0.3]])
CONFIG = TrainingConfig(batch_size=5, learning_rate=0.02, dtype="float64")
BY_LOSS = ["standard", "coteaching", "mentornet"]  # means of small losses
POINTWISE = [name for name in METHODS if name not in ("single", "reweight")]


def _mlp(input_shape, n_classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(input_shape[0], 6), nn.ReLU(), nn.Linear(6, n_classes)
    )


def _smooth(input_shape, n_classes):
    return nn.Sequential(nn.Linear(input_shape[0], 6), nn.Tanh(), nn.Linear(6, n_classes))


def _train(data, method, rates=RATES, network=_smooth, **options):
    seeds = list(range(3, 3 + len(rates)))
    return train_batch(
        rates, seeds, data=data, network=network, config=CONFIG, device="cpu",
        **{"method": method, "backend": "loop", **options},
    )  # fmt: skip


def _assert_close(a, b, atol=1e-9):
    for one, other in zip(a, b, strict=True):
        assert (one.failure, other.failure) == (None, None)
        for name in one.curves._fields:
            np.testing.assert_allclose(
                getattr(one.curves, name), getattr(other.curves, name), rtol=0, atol=atol,
                err_msg=name,
            )  # fmt: skip


# --- references ---------------------------------------------------------------------------------


def _ce(logits, y):
    return torch.stack(
        [row.logsumexp(0) - row[label] for row, label in zip(logits, y, strict=True)]
    )


def _disagreeing(x):
    return [i for i in range(x.shape[1]) if x[0, i].argmax() != x[1, i].argmax()]


def _small(losses, rows, rate):
    n = max(1, int(rate * len(rows) + 1e-9))
    return sorted(rows, key=lambda i: losses[i].item())[:n] if rows else []


def _objective(name, x, y, rate):
    """Return what a step descends on, and the rows that each network selected."""
    everyone, ce = list(range(len(y))), [_ce(net, y) for net in x]
    if name == "jocor":
        log_p = x.log_softmax(2)
        apart = (log_p[0].exp() * (log_p[0] - log_p[1])).sum(1)
        apart = apart + (log_p[1].exp() * (log_p[1] - log_p[0])).sum(1)
        joint = 0.5 * (ce[0] + ce[1]) + 0.5 * apart
        rows = _small(joint, everyone, rate)
        return joint[rows].mean(), [rows, rows]
    among = _disagreeing(x) if name in ("decoupling", "coteaching+") else everyone
    if name in ("standard", "decoupling"):
        rate = 1.0
    selected = [_small(losses, among, rate) for losses in ce]
    used = selected[::-1] if name.startswith("coteaching") else selected
    parts = [ce[i][used[i]].mean() for i in (0, 1) if used[i]]
    return sum(parts, start=torch.zeros((), dtype=torch.float64)), selected


def _reference(data, name, seed, rates):
    """Train two networks by hand; return validation errors (T, 2) and label precision (T, 2)."""
    *inits, order, _ = map(int, np.random.SeedSequence(seed).generate_state(4, np.uint64))
    nets = [make_network(_smooth, (5,), 3, seed=init).double() for init in inits]
    adam = torch.optim.Adam([p for net in nets for p in net.parameters()], lr=0.02)
    generator, y, n_epochs = torch.Generator().manual_seed(order), data.noisy_labels, len(rates)
    is_clean, losses, precisions = y == data.clean_labels, [], []
    for t, rate in enumerate(rates):
        start = round(0.4 * n_epochs)
        if t >= start:
            lr = 0.02 * (n_epochs - t) / (n_epochs - start)
            adam.param_groups[0].update(lr=lr, betas=(0.1, 0.999))
        right = [[], []]
        for batch in torch.randperm(23, generator=generator)[:20].view(4, 5):
            x = torch.stack([net(data.x[batch].double()) for net in nets])
            total, selected = _objective(name, x, y[batch], rate)
            for i in (0, 1):
                right[i] += is_clean[batch][selected[i]].tolist()
            adam.zero_grad()
            (total + 0 * x.sum()).backward()
            adam.step()
        precisions.append([np.mean(r) if r else np.nan for r in right])
        with torch.no_grad():
            losses.append(
                [float(_ce(net(data.x_val.double()), data.y_val).mean()) for net in nets]
            )
    return np.array(losses), np.array(precisions)


NAMES = ["standard", "mentornet", "coteaching", "coteaching+", "decoupling", "jocor"]


@pytest.mark.parametrize("name", NAMES)
def test_trainings_equal_loops_written_by_hand(tiny, name):
    for k, result in enumerate(_train(tiny, name)):
        losses, precisions = _reference(tiny, name, 3 + k, RATES[k])
        np.testing.assert_allclose(result.curves.loss, losses, rtol=0, atol=1e-9)
        if name in ("coteaching+", "decoupling"):  # steps differ in their numbers of samples
            assert (np.isnan(result.curves.label_precision) == np.isnan(precisions)).all()
        else:
            np.testing.assert_allclose(result.curves.label_precision, precisions, atol=1e-12)


# --- backends -----------------------------------------------------------------------------------


OPTIONS = [
    Coteaching(divide_again=True), CoteachingPlus(warm_up=1, softmax_twice=True),
    Decoupling(warm_up=1, least_share=0.5), ForwardCorrection("true", clip_first=True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("network", "method"),
    [
        *((_mlp, method) for method in (*POINTWISE, *OPTIONS)),
        # what is mapped are the networks: their logits enter all methods alike
        *((_smooth, method) for method in ("coteaching", "jocor", OPTIONS[1])),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_fused_trainings_equal_the_loop(tiny, method, network):
    loop = _train(tiny, method, network=network, watch_samples=True)
    fused = _train(tiny, method, network=network, watch_samples=True, backend="fused")
    _assert_close(loop, fused)
    for one, other in zip(loop, fused, strict=True):
        for field in vars(one.samples):
            np.testing.assert_allclose(
                getattr(one.samples, field), getattr(other.samples, field), atol=1e-9
            )


@pytest.mark.parametrize("method", ["bare", "jocor", "coteaching+"])
def test_convolutions_side_by_side_equal_the_loop(method):
    rng = np.random.default_rng(0)
    clean = np.arange(20) % 3
    x = (rng.normal(size=(3, 1, 8, 8))[clean] + rng.normal(size=(20, 1, 8, 8))).astype(np.float32)
    noisy = np.where(rng.random(20) < 0.4, rng.integers(0, 3, 20), clean)
    data = NoisyData.from_arrays(x, noisy, x[:9], clean[:9], clean_labels=clean)

    def network(input_shape, n_classes):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, n_classes)
        )

    loop = _train(data, method, network=network)
    _assert_close(loop, _train(data, method, network=network, backend="fused"))
    _assert_close(loop, _train(data, method, network=network, backend="auto"))


@pytest.mark.parametrize("method", BY_LOSS)
def test_kept_rows_train_every_mean_of_small_losses(tiny, method):
    loop = _train(tiny, method, network=_mlp)
    _assert_close(loop, _train(tiny, method, network=_mlp, backend="rows"))


@pytest.mark.parametrize(
    ("backend", "method", "message"),
    [
        ("rows", "bare", "backend 'rows' needs a method that trains on the mean of small losses"),
        ("rows", "f-correction", "but got 'f-correction'. Take 'auto' or 'loop'."),
        ("fused", "reweight", "backend 'fused' needs a method whose steps follow from logits"),
        ("rows", "reweight", "backend 'rows' needs a method whose steps"),
    ],
)
def test_backends_say_which_methods_they_cannot_train(tiny, backend, method, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _train(tiny, method, network=_mlp, backend=backend)


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if not m.uses_schedule])
def test_methods_without_schedule_ignore_it(tiny, method):
    with_schedule, without = (
        _train(tiny, method, rates=rates) for rates in (RATES[1:], np.ones_like(RATES[1:]))
    )
    for one, other in zip(with_schedule, without, strict=True):
        for name in one.curves._fields:
            np.testing.assert_array_equal(getattr(one.curves, name), getattr(other.curves, name))


def test_standard_is_coteaching_with_everything_kept(tiny):
    standard = _train(tiny, "standard", rates=RATES[:1])
    _assert_close(standard, _train(tiny, "coteaching", rates=np.ones_like(RATES[:1])))


def test_options_reach_the_training(tiny):
    plain, same, other = (
        _train(tiny, method, rates=RATES[:1])[0].curves.loss
        for method in ("jocor", Jocor(), Jocor(0.1))
    )
    assert (plain == same).all()
    assert (plain != other).all()
    with pytest.raises(ValueError, match="method must be one of"):
        _train(tiny, "s2e")


def test_trials_that_stop_leave_the_others_alone(tiny):
    def stop_first(k, epoch, metrics):
        return k == 0 and epoch == 1

    for method in ("jocor", "bare", "f-correction"):
        stopped = _train(tiny, method, network=_mlp, backend="fused", on_epoch=stop_first)
        assert [result.n_epochs for result in stopped] == [2, 3]
        whole = _train(tiny, method, network=_mlp)
        np.testing.assert_allclose(stopped[1].curves.loss, whole[1].curves.loss, atol=1e-9)
