"""The published programs' way to train: images through PIL, losses sorted on the host."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from optuna_s2e.coteaching._torchvision import import_datasets


class PilImages(Dataset[tuple[Tensor, int, int]]):
    """Images as torchvision's data sets give them: through PIL and a transform, one by one."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        import_datasets()  # torchvision, where it does not load by itself
        from PIL import Image
        from torchvision.transforms import ToTensor

        pixels = x if x.dtype == torch.uint8 else (x * 255).round().to(torch.uint8)
        self.images = pixels.permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()
        self.labels = y.tolist()
        self.to_image, self.to_tensor = Image.fromarray, ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.to_tensor(self.to_image(self.images[index])), self.labels[index], index


def authors_step(
    x: Tensor, y: Tensor, nets: list[nn.Module], adams: list[torch.optim.Adam], kept: int
) -> list[float]:
    logits = [net(x) for net in nets]
    losses = [F.cross_entropy(out, y, reduction="none") for out in logits]
    order = [np.argsort(loss.detach().cpu().numpy()) for loss in losses]
    for i, adam in enumerate(adams):
        peer = torch.from_numpy(order[1 - i][:kept]).to(x.device)
        adam.zero_grad()
        F.cross_entropy(logits[i][peer], y[peer]).backward()
        adam.step()
    return [(out.argmax(dim=1) == y).float().mean().item() for out in logits]


def authors_error(net: nn.Module, loader: Iterable[Any], device: torch.device) -> float:
    wrong = total = 0
    net.eval()
    with torch.no_grad():
        for x, y, _ in loader:
            wrong += int((net(x.to(device)).argmax(dim=1).cpu() != y).sum())
            total += len(y)
    return wrong / total
