"""Images in folders, as arrays of one shape. Pillow reads them; torchvision brings it."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from optuna_s2e.cli._common import bar_interval

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"
)  # fmt: skip
MAX_BROKEN = 5  # images that a message lists
LARGE, SUGGESTED = 64, 32  # pixels: such images train slowly; the size that a message suggests

Pixels = npt.NDArray[np.uint8]


class ImageShape(NamedTuple):
    """What all images of a set have in common.

    Attributes:
        channels: 1 (grey) or 3 (colours).
        height: Pixels.
        width: Pixels.
        resized: Whether images of other sizes are resized to this one.
    """

    channels: int
    height: int
    width: int
    resized: bool


class Images(NamedTuple):
    """Images as an array, (N, channels, height, width), their shape, and a digest of the files."""

    pixels: Pixels
    shape: ImageShape
    digest: str


class Listing(NamedTuple):
    """The images below a folder, sorted, and the names of the other files."""

    images: list[Path]
    others: list[str]


def list_images(folder: Path) -> Listing:
    """Return the images below a folder. Hidden files are passed over."""
    files = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(root, name) for name in names if not name.startswith(".")]
    files.sort()
    images = [path for path in files if path.suffix.lower() in ENDINGS]
    return Listing(images, [p.name for p in files if p.suffix.lower() not in ENDINGS])


def read_images(
    paths: Sequence[Path], *, shape: ImageShape | None = None, size: int | None = None
) -> Images:
    """Return images as an array. Transparent parts become white.

    If one image has colours, all get three channels.

    Args:
        paths: The files.
        shape: The shape that they have to have; None for that of the images themselves.
        size: Height and width that they are resized to; None for none.

    Raises:
        ValueError: If a file is no image, or their sizes differ.
    """
    from tqdm import tqdm

    images, broken, digest = list[Pixels](), list[str](), hashlib.sha256()
    resize = None if size is None else (size, size)
    if shape is not None and shape.resized:
        resize = (shape.width, shape.height)
    bar = tqdm(paths, "reading images", delay=2, leave=False, unit="image",
               mininterval=bar_interval())  # fmt: skip
    for path in bar:
        content = path.read_bytes()
        digest.update(f"{path.parent.name}/{path.name} {len(content)} ".encode() + content)
        try:
            images.append(_decode(content, resize))
        except Exception:  # Pillow has many kinds
            broken.append(repr(str(path)))
    if broken:
        more = f" and {len(broken) - MAX_BROKEN} more" if len(broken) > MAX_BROKEN else ""
        raise ValueError(
            f"{len(broken)} of {len(paths)} images cannot be read: "
            f"{', '.join(broken[:MAX_BROKEN])}{more}. Repair them, or move them elsewhere."
        )
    if shape is None:
        shape = _common_shape(paths, images, size)
    expected = (shape.height, shape.width)
    for path, image in zip(paths, images, strict=True):
        if image.shape[:2] != expected:
            raise ValueError(
                f"Images must have {_size(expected)} pixels, as those that the model was fitted "
                f"with, but {str(path)!r} has {_size(image.shape)}. Resize it, or fit the model "
                "with --image-size."
            )
    converted = [_with_channels(image, shape.channels) for image in images]
    pixels = np.stack(converted).transpose(0, 3, 1, 2).copy()
    return Images(pixels, shape, digest.hexdigest())


def _common_shape(paths: Sequence[Path], images: list[Pixels], size: int | None) -> ImageShape:
    """Return the shape of images that have one; refuse others."""
    sizes = Counter(image.shape[:2] for image in images)
    (most, _), *others = sizes.most_common()
    if others:
        other = next(i for i, image in enumerate(images) if image.shape[:2] != most)
        raise ValueError(
            f"Images must have one size, but most have {_size(most)} pixels and "
            f"{str(paths[other])!r} has {_size(images[other].shape)}. --image-size "
            f"{min(max(most), SUGGESTED)} resizes all of them."
        )
    channels = 3 if any(image.shape[2] == 3 for image in images) else 1
    return ImageShape(channels, most[0], most[1], size is not None)


def _decode(content: bytes, size: tuple[int, int] | None) -> Pixels:
    """Return an image as (height, width, 1 or 3)."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as opened:
        image: Any = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):  # 16 bits and more
            values = np.asarray(image, dtype=np.float64)
            scale = 257.0 if values.max(initial=0.0) > 255 else 1.0
            image = Image.fromarray((values / scale).clip(0, 255).astype(np.uint8))
        elif image.has_transparency_data:
            is_grey = image.mode in ("L", "LA")
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image).convert("L" if is_grey else "RGB")
        elif image.mode not in ("L", "RGB"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        if size is not None and image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _with_channels(image: Pixels, channels: int) -> Pixels:
    """Return an image as grey or with three channels."""
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    grey = np.round(image @ np.array([0.299, 0.587, 0.114]))
    return np.asarray(grey[:, :, None], dtype=np.uint8)


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]} x {shape[0]}"
