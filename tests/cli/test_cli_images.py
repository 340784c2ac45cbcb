"""Folders of images: one array of one shape, and files that are no images."""

from pathlib import Path

import numpy as np
import pytest
from commands import write_image
from PIL import Image

from optuna_s2e.cli._images import ImageShape, list_images, read_images


def test_grey_images_stay_grey_and_are_sorted() -> None:
    for name, level in [("b", 10), ("a", 20)]:
        write_image(f"p/{name}.png", level)
    Path("p/.hidden").mkdir()
    write_image("p/.hidden/c.png")
    write_image("elsewhere/d.png", 30)
    Path("p/linked").symlink_to(Path("elsewhere").absolute())
    Path("p/notes.txt").write_text("")
    Path("p/.DS_Store").write_text("")
    listing = list_images(Path("p"))
    assert [path.name for path in listing.images] == ["a.png", "b.png", "d.png"]
    assert listing.others == ["notes.txt"]
    images = read_images(listing.images)
    assert images.shape == ImageShape(1, 6, 5, False)
    assert images.pixels.dtype == np.uint8
    assert images.pixels[:, 0, 0, 0].tolist() == [20, 10, 30]
    assert images.pixels[:, 0, 5, 4].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
def test_modes_are_mixed(mode: str) -> None:
    write_image("grey.png", 0)
    ending = "tif" if mode == "CMYK" else "png"
    if mode == "I;16":
        Image.fromarray(np.full((6, 5), 65535, dtype=np.uint16)).save("other.png")
    else:
        write_image(f"other.{ending}", 255, mode=mode)
    images = read_images([Path("grey.png"), Path(f"other.{ending}")])
    assert images.shape.channels == (1 if mode in ("I;16", "1", "LA") else 3)
    assert (images.pixels[1] == 255).all()
    assert (images.pixels[0, :, 0] == 0).all()


def test_transparent_parts_are_white() -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save("a.png")
    assert (read_images([Path("a.png")]).pixels == 255).all()


def test_sizes_that_differ_are_refused_with_a_remedy_that_works() -> None:
    paths = [Path(f"{i}.png") for i in range(3)]
    for path, size in zip(paths, [(5, 6), (5, 6), (9, 4)], strict=True):
        write_image(str(path), size=size)
    message = "most have 5 x 6 pixels and '2.png' has 9 x 4. --image-size 6 resizes all of them"
    with pytest.raises(ValueError, match=message):
        read_images(paths)
    assert read_images(paths, size=6).pixels.shape == (3, 1, 6, 6)


def test_new_images_get_the_channels_and_the_size_of_the_training() -> None:
    write_image("a.png", 7, mode="RGB")
    grey = read_images([Path("a.png")], shape=ImageShape(1, 6, 5, False)).pixels
    assert (grey.shape, grey[0, 0, 0, 0]) == ((1, 1, 6, 5), 7)
    resized = read_images([Path("a.png")], shape=ImageShape(3, 8, 8, True)).pixels
    assert resized.shape == (1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"must have 4 x 6 pixels, .* but 'a.png' has 5 x 6"):
        read_images([Path("a.png")], shape=ImageShape(1, 6, 4, False))


@pytest.mark.parametrize("n_bytes", [0, 20, 45])
def test_a_damaged_image_is_named(n_bytes: int) -> None:
    write_image("a.png")
    Path("b.png").write_bytes(Path("a.png").read_bytes()[:n_bytes])
    message = r"1 of 2 images cannot be read: 'b.png'. Repair them, or move them elsewhere"
    with pytest.raises(ValueError, match=message):
        read_images([Path("a.png"), Path("b.png")])
    with pytest.raises(ValueError, match=r"7 of 7 images cannot be read: .*'b.png' and 2 more\."):
        read_images([Path("b.png")] * 7)


def test_the_digest_tells_contents_and_names_apart() -> None:
    for name, level in [("a/x", 1), ("b/x", 1), ("a/y", 2)]:
        write_image(f"{name}.png", level)
    digests = [read_images([Path(f"{n}.png")]).digest for n in ("a/x", "b/x", "a/y", "a/x")]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]
