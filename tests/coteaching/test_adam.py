"""Adam gives the numbers of PyTorch's."""

import pytest
import torch
from torch import nn

from optuna_s2e.coteaching._adam import Adam


def _train(make, dtype, lr):
    """Return the parameters after each of six steps; the second waits for its first gradient."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((3, 2), (4,), ())]
    frozen = torch.zeros(2, dtype=dtype)
    optimizer = make([*parameters, frozen], lr() if callable(lr) else lr)
    (group,) = optimizer.param_groups
    seen = []
    for i in range(6):
        if i == 3:
            group["betas"] = (0.1, 0.999)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(0.05)
            else:
                group["lr"] = 0.05
        optimizer.zero_grad()
        assert all(p.grad is None for p in parameters)
        taken = parameters if i >= 2 else parameters[::2]
        sum((p * torch.randn_like(p)).sum() + (p**4).sum() for p in taken).backward()
        optimizer.step()
        seen += [p.detach().clone() for p in parameters]
    assert set(optimizer.state) == set(parameters)
    seen += [value for p in parameters for _, value in sorted(optimizer.state[p].items())]
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lr", [0.5, lambda: torch.tensor(0.5)], ids=["number", "tensor"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.25])
def test_the_numbers_are_those_of_pytorch(dtype, lr, weight_decay):
    ours = _train(lambda p, rate: Adam(p, rate, weight_decay=weight_decay), dtype, lr)
    theirs = _train(
        lambda p, rate: torch.optim.Adam(p, rate, weight_decay=weight_decay, fused=True),
        dtype,
        lr,
    )
    assert len(ours) == len(theirs) == 6 * 3 + 3 * 3
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
