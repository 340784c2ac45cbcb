"""Convolutions as matrix products: each against PyTorch's own. test_fused_cnn trains them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from optuna_s2e.coteaching import NoisyData, TrainingConfig, train_batch
from optuna_s2e.coteaching.backends._base import TrainingSetup
from optuna_s2e.coteaching.backends._fused_cnn_unfolded import UnfoldedCnnTrainer, _convolve


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": (3, 2), "stride": (2, 1)},
        {"kernel_size": 3, "padding": (2, 1), "dilation": (1, 2)},
        {"kernel_size": (2, 3), "padding": "same"},  # a row of zeros below, none above
        {"kernel_size": (4, 2), "padding": "same", "dilation": 3, "groups": 2},
        {"kernel_size": 2, "padding": "valid", "stride": 3, "groups": 4},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # PyTorch's own
@pytest.mark.parametrize("copies", [1, 3, 6])  # inputs of all networks, of a trial, of a network
def test_a_convolution_and_its_gradients_are_pytorchs(options, copies):
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(4, 8, **options).double() for _ in range(6)]
    x = torch.randn((copies, 4, 5, 9, 7), generator=generator, dtype=torch.float64)
    x.requires_grad_()
    joint = {
        name: torch.cat([layer.get_parameter(name).detach() for layer in layers]).requires_grad_()
        for name, _ in layers[0].named_parameters()
    }
    out = _convolve(layers[0], joint, x, 6)
    expected = torch.stack(
        [layer(x[m * copies // 6].transpose(0, 1)) for m, layer in enumerate(layers)]
    ).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    by_out = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    own = torch.autograd.grad((out * by_out).sum(), [x, *joint.values()])
    weights = [layer.get_parameter(name) for name in joint for layer in layers]
    reference = torch.autograd.grad((expected * by_out).sum(), [x, *weights])
    torch.testing.assert_close(own[0], reference[0], rtol=0, atol=1e-11)
    for i, gradient in enumerate(own[1:]):
        of_layers = torch.cat(reference[1 + 6 * i : 7 + 6 * i])
        torch.testing.assert_close(gradient, of_layers, rtol=0, atol=1e-11)


def _data(size=16):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (8, 3, size, size), dtype=np.uint8), np.arange(8) % 4
    return NoisyData.from_arrays(x, y, x[:4], y[:4])


class _Products(TorchDispatchMode):
    """Notes the shapes and dtypes of the factors of all products, and all convolutions."""

    def __init__(self):
        super().__init__()
        self.shapes, self.dtypes, self.convolutions = [], set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::bmm", "aten::baddbmm"):
            factors = args[-2:]
            self.shapes.append(tuple(tuple(factor.shape) for factor in factors))
            self.dtypes |= {factor.dtype for factor in factors}
        self.convolutions += "convolution" in func.name()
        return func(*args, **(kwargs or {}))


def test_the_first_layer_of_both_networks_is_one_product():
    data = _data()
    setup = TrainingSetup(data, "cnn2", TrainingConfig(4), (data.x_val, data.y_val))
    trainer = UnfoldedCnnTrainer(setup, [0, 1, 2], data.noisy_labels)
    with _Products() as seen:
        trainer.train_epoch(np.ones(3), 0.01, 0.9)
    assert seen.convolutions == 0
    # 3 trials: 12 filters of 75 pixels at 4 * 144 places; 6 networks: 16 filters of 150 pixels
    assert seen.shapes[:2] == [((3, 12, 75), (3, 75, 576)), ((6, 16, 150), (6, 150, 16))]
    with _Products() as seen:
        trainer.evaluate()
    assert seen.shapes[0] == ((1, 36, 75), (1, 75, 576))  # all networks see the same images


def test_bfloat16_patches_are_bfloat16():
    data = _data()
    config = TrainingConfig(4, dtype="bfloat16")
    setup = TrainingSetup(data, "cnn2", config, (data.x_val, data.y_val))
    trainer = UnfoldedCnnTrainer(setup, [0, 1], data.noisy_labels)
    with _Products() as seen:
        trainer.train_epoch(np.ones(2), 0.01, 0.9)
    assert seen.dtypes == {torch.bfloat16}
    padded = nn.Conv2d(3, 2, 3, padding=1)
    with torch.autocast("cpu", torch.bfloat16):
        out = _convolve(padded, dict(padded.named_parameters()), torch.ones((1, 3, 2, 4, 4)), 1)
    expected = F.conv2d(torch.ones((2, 3, 4, 4)), padded.weight, padded.bias, padding=1)
    torch.testing.assert_close(out[0].transpose(0, 1).float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "network", ["mlp", lambda shape, c: nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(768, c))]
)
def test_other_networks_are_refused(network):
    with pytest.raises(ValueError, match="'unfolded' needs a network that is a plain convolution"):
        train_batch([[1.0]], [0], data=_data(), network=network, device="cpu", backend="unfolded")
