"""examples/image_data.py: what it draws, how it splits, and what it says of a folder that is no good."""

import pytest
import torch

pytest.importorskip("sklearn", reason="needs scikit-learn")
Image = pytest.importorskip("PIL.Image", reason="needs pillow")

import image_data  # noqa: E402
from image_data import DataError, load  # noqa: E402


@pytest.fixture
def photographs(tmp_path):
    """Six images of one colour each: red ones in a/, green ones in b/deep/, sizes and formats that differ."""
    for kind, color in (("a", (255, 0, 0)), ("b/deep", (0, 255, 0))):
        (tmp_path / kind).mkdir(parents=True)
        for name, shape in (("1.png", (20, 9)), ("2.JPG", (9, 20)), ("3.bmp", (30, 30))):
            Image.new("RGB", shape, color).save(tmp_path / kind / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("kind, channels, classes", [("digits", 1, 10), ("patches", 3, 2)])
def test_built_in_data(kind, channels, classes, size):
    images = load([kind], size)
    for part, labels in ((images.train, images.train_labels), (images.held_out, images.held_out_labels)):
        assert part.shape[1:] == (channels, size, size) and -1 <= part.min() < -0.5 < 0.5 < part.max() <= 1
        assert len(labels) == len(part) and set(labels.tolist()) == set(range(classes)) == set(
            range(len(images.classes))
        )
    assert len(images.held_out) == round(0.2 * (len(images.train) + len(images.held_out)))
    assert torch.equal(load([kind], size).held_out, images.held_out), "the same split every time"


def test_digits_keep_their_labels():
    """8x8 images are scikit-learn's own: each is found there, with its label."""
    from sklearn.datasets import load_digits

    found = load_digits()
    theirs = {image.tobytes(): label for image, label in zip(found.images.astype("f4"), found.target, strict=True)}
    images = load(["digits"], 8)
    everything = torch.cat([images.train, images.held_out])[:, 0]
    labels = torch.cat([images.train_labels, images.held_out_labels]).tolist()
    assert len(everything) == len(found.images)
    assert [theirs[((image + 1) * 8).numpy().tobytes()] for image in everything] == labels


def test_draw_follows_the_global_random_state():
    images = load(["digits"], 8)
    torch.manual_seed(3)
    first = images.draw(50)
    torch.manual_seed(3)
    samples, labels = images.draw_labelled(50)
    assert torch.equal(first, samples)
    assert not torch.equal(first, images.draw(50)), "it moves on"
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(images.train, images.train_labels, strict=True)
    }
    assert [known[sample.numpy().tobytes()] for sample in samples] == labels.tolist()


def test_folder_round_trip(photographs):
    """Cropped to squares and resized, a colour stays that colour; the folder an image lies in is its label."""
    images = load(["folder", str(photographs)], 8)
    assert images.classes == ("a", "b/deep") and len(images.train) == 5 and len(images.held_out) == 1
    everything = torch.cat([images.train, images.held_out])
    labels = torch.cat([images.train_labels, images.held_out_labels])
    assert everything.shape == (6, 3, 8, 8) and sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    expected = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0]])[labels]
    assert (everything - expected[:, :, None, None]).abs().max() < 0.02, "JPEG is not exact"


def test_folder_pixels_are_exact(tmp_path):
    """A PNG of the size that is asked for comes back pixel by pixel."""
    pixels = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for i, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / f"{i}.png")
    images = load(["folder", str(tmp_path)], 8)
    assert images.classes == () and images.train_labels is None
    found = torch.cat([images.train, images.held_out]).permute(0, 2, 3, 1)
    back = ((found + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(back, pixels) or torch.equal(back, pixels.flip(0))


def test_folder_with_an_unreadable_file(photographs):
    bad = photographs / "a" / "0.png"
    bad.write_bytes(b"this is no PNG")
    with pytest.raises(DataError, match=r"a/0\.png cannot be read .*; 6 images are fine; .*--skip-unreadable"):
        load(["folder", str(photographs)], 8)
    images = load(["folder", str(photographs)], 8, skip_unreadable=True)
    assert len(images.train) + len(images.held_out) == 6


def test_folder_with_a_truncated_file(photographs):
    whole = (photographs / "a" / "3.bmp").read_bytes()
    (photographs / "a" / "3.bmp").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a/3\.bmp cannot be read .*; 5 images are fine"):
        load(["folder", str(photographs)], 8)


@pytest.mark.parametrize(
    "words, message",
    [
        (["faces"], "there is no data 'faces'; there are digits, patches, folder"),
        (["folder"], "takes one path: --data folder PATH; got none"),
        (["folder", "a", "b"], "takes one path: --data folder PATH; got 'a' 'b'"),
        (["digits", "a"], "takes nothing after it"),
        (["folder", "{tmp}/none"], "none is not there; give a folder of images"),
        (["folder", "{tmp}/file.txt"], "file.txt is a file; give a folder of images"),
        (["folder", "{tmp}"], "holds 0 images that can be read, and 2 at least are needed"),
    ],
)
def test_bad_input(tmp_path, words, message):
    (tmp_path / "file.txt").write_text("not an image")
    with pytest.raises(DataError, match=message):
        load([word.format(tmp=tmp_path) for word in words], 8)


def test_split_keeps_one_of_two():
    images = image_data.split(torch.arange(2.0)[:, None, None, None])
    assert len(images.train) == len(images.held_out) == 1
