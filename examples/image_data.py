"""Image data for the programs: square images in [-1, 1], some of them held out, with labels where there are some.

    digits           scikit-learn's 1,797 digits of 8x8 pixels, labelled; grey
    patches          patches of scikit-learn's two sample photographs, labelled by photograph; colour
    folder PATH      your own images, at any depth below PATH; the folder that an image lies in is its label; colour

Needs scikit-learn and pillow.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

KINDS = ("digits", "patches", "folder")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
SPLIT_SEED = 0  # which images are held out, and where patches lie, is the same in every run


class DataError(ValueError):
    """Data that is not there or cannot be read; the message says what was found, and the remedy."""


@dataclass(frozen=True)
class Images:
    """Training images and held-out ones, (n, channels, size, size), with a label each where `classes` are named."""

    train: Tensor
    held_out: Tensor
    train_labels: Tensor | None = None
    held_out_labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def draw(self, count):
        """`count` training images drawn with replacement from PyTorch's global random state."""
        return self.train[torch.randint(len(self.train), (count,))]

    def draw_labelled(self, count):
        """(images, labels), drawn in the same way."""
        drawn = torch.randint(len(self.train), (count,))
        return self.train[drawn], self.train_labels[drawn]


def load(words, size, skip_unreadable=False):
    """The `Images` that the words of --data name, size x size. Raises DataError."""
    kind, *rest = words
    if kind not in KINDS:
        raise DataError(f"there is no data {kind!r}; there are {', '.join(KINDS)}")
    if len(rest) != (kind == "folder"):
        expected = "one path: --data folder PATH" if kind == "folder" else f"nothing after it: --data {kind}"
        raise DataError(f"{kind!r} takes {expected}; got {' '.join(map(repr, rest)) or 'none'}")
    if kind == "folder":
        return folder(Path(rest[0]), size, skip_unreadable)
    return digits(size) if kind == "digits" else patches(size)


def all_digits():
    """(images, labels, names of the classes): (1797, 1, 8, 8) in [-1, 1], none held out."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(found.target), tuple(str(name) for name in found.target_names)


def digits(size):
    images, labels, classes = all_digits()
    if size != images.shape[-1]:
        images = F.interpolate(images, size=size, mode="bicubic").clamp(-1, 1)
    return split(images, labels, classes)


def patches(size, count=8192):
    """From the photographs at a third of their size, so that a small patch shows something.

    Held out are patches of other places; they may overlap those that are trained on.
    """
    photographs = [torch.tensor(p, dtype=torch.float32).permute(2, 0, 1) for p in load_sample_images().images]
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    images = []
    for photograph in photographs:
        photograph = F.avg_pool2d(photograph, 3) / 127.5 - 1
        windows = photograph.unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        images.append(windows[torch.randint(len(windows), (count // len(photographs),), generator=generator)])
    labels = torch.arange(len(images)).repeat_interleave(count // len(images))
    return split(torch.cat(images), labels, tuple(Path(name).stem for name in load_sample_images().filenames))


def folder(path, size, skip_unreadable=False):
    """Every image below `path`: turned upright, cropped to a square, resized."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_dir():
        raise DataError(f"{path} is {'a file' if path.exists() else 'not there'}; give a folder of images")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    images, read, unreadable = [], [], []
    for file in tqdm(files, desc="images", unit="file", leave=False, disable=None):
        try:
            with Image.open(file) as image:
                image = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (size, size))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            unreadable.append((file, error))
        else:
            images.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3))
            read.append(file)
    if unreadable and not skip_unreadable:
        file, error = unreadable[0]
        more = f", nor {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        raise DataError(
            f"{file} cannot be read ({error}){more}; {len(read)} images are fine; remove it, or pass --skip-unreadable"
        )
    if len(read) < 2:
        raise DataError(
            f"{path} holds {len(read)} images that can be read, and 2 at least are needed "
            f"({' '.join(sorted(SUFFIXES))}, at any depth)"
        )
    images = torch.stack(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    names = [str(file.parent.relative_to(path)) for file in read]
    classes = tuple(sorted(set(names)))
    if classes == (".",):
        return split(images)
    return split(images, torch.tensor([classes.index(name) for name in names]), classes)


def split(images, labels=None, classes=(), share=0.2):
    """`Images` with a share of them held out, chosen at random, the same ones every time."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out, train = order.tensor_split([max(1, round(share * len(images)))])
    parts = (images[train], images[held_out])
    return Images(*parts) if labels is None else Images(*parts, labels[train], labels[held_out], classes)
