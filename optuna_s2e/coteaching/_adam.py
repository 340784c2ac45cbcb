"""Adam by PyTorch's fused kernel, without what `torch.optim.Adam` brings along.

Making or stepping a `torch.optim.Optimizer` imports `torch._dynamo`, which takes about as long as
importing PyTorch itself, and each of its steps does more in Python around the kernel. The numbers
are those of `torch.optim.Adam(fused=True)`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam


class Adam:
    """Adam of Kingma and Ba (2015, Algorithm 1), with the attributes of an optimiser of PyTorch.

    Attributes:
        param_groups: One group, whose values the next step reads.
        state: "step", "exp_avg" and "exp_avg_sq" of each parameter that had a gradient.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        lr: float | Tensor,
        *,
        weight_decay: float = 0.0,
        capturable: bool = False,
    ) -> None:
        """Make an optimiser.

        Args:
            parameters: What to train: floating-point leaves.
            lr: The learning rate; a tensor is read on its device.
            weight_decay: Factor of the parameters that is added to their gradients.
            capturable: Whether steps are recorded as a CUDA graph.
        """
        self.param_groups: list[dict[str, Any]] = [
            {
                "params": list(parameters),
                "lr": lr,
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": weight_decay,
                "capturable": capturable,
            }
        ]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Step each parameter that has a gradient."""
        (group,) = self.param_groups
        parameters = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] or self._begin(p) for p in parameters]
        beta1, beta2 = group["betas"]
        adam(
            parameters,
            [p.grad for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            capturable=group["capturable"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _begin(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
