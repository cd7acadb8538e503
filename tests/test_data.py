"""Data sets: reading and refusing files, the order of places, downloads, batches, pictures.

No test touches the network: where a download is due, its HTTP part is replaced.
"""

import gzip
import hashlib
import struct
import sys
from pathlib import Path

import pytest
import requests
import torch
from PIL import Image

from cnnkern import data
from cnnkern.assets.make_subset import make_subset, write_idx

TRAIN, TEST = 12, 6


def idx_bytes(values: torch.Tensor) -> bytes:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    return header + values.numpy().tobytes()


def write_set(folder: Path, zipped: bool = True, first_pixel: int = 0) -> Path:
    """Write a made-up data set of TRAIN and TEST images of 28x28, classes 0, 1, 2 in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    for count, (images_stem, labels_stem) in (
        (TRAIN, data.FILES[:2]),
        (TEST, data.FILES[2:]),
    ):
        images = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        images[0, 0, 0] = first_pixel
        for stem, values in ((images_stem, images), (labels_stem, torch.arange(count) % 3)):
            content = idx_bytes(values.to(torch.uint8))
            if zipped:
                (folder / f"{stem}.gz").write_bytes(gzip.compress(content, mtime=0))
            else:
                (folder / stem).write_bytes(content)
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Give an empty cache, no Debian folder, and a network that must not be asked."""

    def refuse(*args, **kwargs):
        pytest.fail("a test asked the network")

    monkeypatch.setattr(data.pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(data, "SYSTEM_DIR", tmp_path / "system")
    monkeypatch.setattr(requests, "get", refuse)
    return tmp_path / "cache" / "cnnkern"


class FakeServer:
    """Stand in for pooch's HTTP downloader: serve a folder, or fail as told."""

    def __init__(self, folder: Path):
        self.folder, self.asked, self.settings = folder, [], {}
        self.cut_off_at: str | None = None
        self.corrupt = False

    def __call__(self, **settings):
        self.settings = settings
        return self.fetch

    def fetch(self, url, output_file, pooch):
        name = url.rpartition("/")[2]
        self.asked.append(name)
        content = (self.folder / name).read_bytes()
        if name == self.cut_off_at:
            Path(output_file).write_bytes(content[: len(content) // 2])
            raise requests.exceptions.ConnectionError("connection broken")
        Path(output_file).write_bytes(content[::-1] if self.corrupt else content)


@pytest.fixture
def server(cache, tmp_path, monkeypatch):
    folder = write_set(tmp_path / "server")
    hashes = tuple(
        hashlib.md5((folder / f"{stem}.gz").read_bytes()).hexdigest() for stem in data.FILES
    )
    monkeypatch.setattr(data, "MD5", {"fashion-mnist": hashes, "mnist": hashes})
    fake = FakeServer(folder)
    monkeypatch.setattr(data.pooch, "HTTPDownloader", fake)
    return fake


GOOD = idx_bytes(torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize("content", [GOOD, gzip.compress(GOOD)], ids=["plain", "gzip"])
def test_read_idx(tmp_path, content):
    path = tmp_path / "any-name"
    path.write_bytes(content)
    values = data.read_idx(path, 3)
    assert values.dtype == torch.uint8
    assert torch.equal(values, torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4))


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG\r\n\x1a\n" + GOOD, "not an IDX file: starts with bytes 89 50 4e 47"),
        (b"<html>sign in</html>", "not an IDX file"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], "element type 0x0d, expected 0x08"),
        (idx_bytes(torch.zeros(5, dtype=torch.uint8)), "1 dimensions, expected 3"),
        (GOOD[:10], "truncated: 10 bytes, the header alone has 16"),
        (GOOD[:-1], "truncated: 39 bytes, 40 announced for 2x3x4"),
        (GOOD + b"\0", "too long: 41 bytes, 40 announced for 2x3x4"),
        (idx_bytes(torch.zeros(0, 3, 4, dtype=torch.uint8)), "holds no elements"),
        (gzip.compress(GOOD, mtime=0)[:-12], "truncated: the gzip stream ends too soon"),
        (flipped(gzip.compress(GOOD, mtime=0), -6), "damaged gzip file"),
        (b"\x1f\x8bnot gzip at all, whatever it says", "damaged gzip file"),
    ],
)
def test_read_idx_names_the_file_and_the_fault(tmp_path, content, fault):
    path = tmp_path / "some-images"
    path.write_bytes(content)
    with pytest.raises(data.DataError) as raised:
        data.read_idx(path, 3)
    assert str(raised.value).startswith(f"{path}: ")
    assert fault in str(raised.value)


def test_read_idx_without_a_file(tmp_path):
    with pytest.raises(data.DataError, match="absent: cannot be read: No such file"):
        data.read_idx(tmp_path / "absent", 1)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_named_folder(cache, tmp_path, zipped, below):
    write_set(tmp_path / "mine" / below, zipped)
    found = data.load_dataset("fashion-mnist", tmp_path / "mine")
    assert found.train.images.shape == (TRAIN, 1, 28, 28)
    assert found.test.images.shape == (TEST, 1, 28, 28)
    assert found.train.images.dtype == torch.uint8
    assert found.train.labels.tolist() == [0, 1, 2] * 4
    assert found.classes[9] == "ankle boot"
    assert found.source == str(tmp_path / "mine" / below).rstrip("/")


def test_named_folder_that_lacks_files(cache, tmp_path):
    with pytest.raises(data.DataError, match="nowhere: no such folder"):
        data.load_dataset("mnist", tmp_path / "nowhere")
    folder = write_set(tmp_path / "mine")
    (folder / f"{data.FILES[1]}.gz").unlink()
    with pytest.raises(data.DataError, match="mine: has no train-labels-idx1-ubyte"):
        data.load_dataset("mnist", folder)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(data.DataError, match="mine: holds no mnist"):
        data.load_dataset("mnist", folder)
    with pytest.raises(data.DataError, match="got 'cifar'"):
        data.load_dataset("cifar", folder)


def test_files_that_do_not_belong_together(cache, tmp_path):
    folder = write_set(tmp_path / "mine")
    labels = folder / f"{data.FILES[3]}.gz"
    write_idx(labels, torch.zeros(TEST + 1, dtype=torch.uint8))
    with pytest.raises(data.DataError, match=f"t10k-labels.*: {TEST + 1} labels for the {TEST}"):
        data.load_dataset("fashion-mnist", folder)
    write_idx(labels, torch.full((TEST,), 37, dtype=torch.uint8))
    with pytest.raises(data.DataError, match=r"t10k-labels.*: label 37, expected 0 to 9"):
        data.load_dataset("fashion-mnist", folder)


def test_places_come_in_order(cache, tmp_path):
    """Cache, then Debian's folder; the network fixture fails the test if it is asked."""
    write_set(tmp_path / "system" / "fashion-mnist", first_pixel=1)
    assert data.load_dataset().train.images[0, 0, 0, 0] == 1
    write_set(cache / "fashion-mnist", first_pixel=2)
    assert data.load_dataset().train.images[0, 0, 0, 0] == 2
    named = write_set(tmp_path / "named", first_pixel=3)
    assert data.load_dataset(data_dir=named).train.images[0, 0, 0, 0] == 3


def test_download_once(cache, server):
    first = data.load_dataset("mnist", quiet=True)
    assert first.classes == tuple("0123456789")
    assert first.source == str(cache / "mnist")
    assert server.asked == [f"{stem}.gz" for stem in data.FILES]
    connect, read = server.settings["timeout"]
    assert connect <= 5
    assert read <= 60
    second = data.load_dataset("mnist", quiet=True)
    assert torch.equal(first.train.images, second.train.images)
    assert len(server.asked) == len(data.FILES)


def test_interrupted_download_does_not_poison_the_cache(cache, server, capsys):
    server.cut_off_at = f"{data.FILES[2]}.gz"
    fallback = data.load_dataset("fashion-mnist")
    assert fallback.name == "fashion-mnist-subset"
    left = sorted(path.name for path in (cache / "fashion-mnist").iterdir())
    assert left == sorted(f"{stem}.gz" for stem in data.FILES[:2])
    message = capsys.readouterr().err
    assert "NOT THE FULL FASHION-MNIST" in message
    assert "connection broken" in message
    assert "--data-dir" in message

    server.cut_off_at, server.asked = None, []
    assert data.load_dataset("fashion-mnist", quiet=True).name == "fashion-mnist"
    assert server.asked == [f"{stem}.gz" for stem in data.FILES[2:]]


def test_download_of_something_else(cache, server):
    server.corrupt = True
    with pytest.raises(
        data.DataError, match=r"train-images-idx3-ubyte\.gz: not the file"
    ) as raised:
        data.load_dataset("fashion-mnist", quiet=True)
    assert data.MD5["fashion-mnist"][0] in str(raised.value)
    assert list((cache / "fashion-mnist").iterdir()) == []


def test_mnist_is_never_replaced_by_fashion(cache, server):
    server.cut_off_at = f"{data.FILES[0]}.gz"
    with pytest.raises(data.DataError, match=r"mnist is not on this machine.*--data-dir"):
        data.load_dataset("mnist", quiet=True)
    with pytest.raises(data.DataError, match="downloading was not allowed"):
        data.load_dataset("mnist", download=False)


def test_damaged_cache_is_reported_not_replaced(cache):
    folder = write_set(cache / "fashion-mnist")
    path = folder / f"{data.FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(data.DataError, match=f"{data.FILES[0]}.gz: truncated"):
        data.load_dataset("fashion-mnist")


def test_embedded_subset(cache):
    subset = data.load_dataset("fashion-mnist-subset")
    assert torch.bincount(subset.train.labels).tolist() == [350] * 10
    assert torch.bincount(subset.test.labels).tolist() == [100] * 10
    # The first label of Fashion-MNIST's training set is an ankle boot, of its test set too.
    assert subset.train.labels[0] == subset.test.labels[0] == 9
    # The full training set has mean 0.2860, standard deviation 0.3530.
    pixels = subset.train.images.float() / 255
    assert abs(pixels.mean() - 0.286) < 0.01
    assert abs(pixels.std() - 0.353) < 0.01
    assert sum(path.stat().st_size for path in data.ASSETS.glob("*.gz")) < 2_200_000
    assert "The MIT License" in (data.ASSETS / "FASHION-MNIST-LICENSE.txt").read_text()


def test_make_subset(cache, tmp_path):
    source = write_set(tmp_path / "full")
    images = data.load_dataset(data_dir=source).train.images
    # load_dataset's ten classes are cut to the three that the made-up set has.
    for target in (tmp_path / "one", tmp_path / "two"):
        target.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "FASHION_CLASSES", ("a", "b", "c"))
            make_subset(source, target, {"train": 2, "test": 1})
    subset = data.load_dataset(data_dir=tmp_path / "one")
    assert torch.equal(subset.train.images, images[:6])
    assert subset.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert subset.test.labels.tolist() == [0, 1, 2]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    with pytest.raises(ValueError, match="class 3 has 0 images, asked for 2"):
        make_subset(source, tmp_path / "one", {"train": 2, "test": 1})


@pytest.fixture
def split():
    images = torch.arange(11 * 4, dtype=torch.uint8).reshape(11, 1, 2, 2)
    return data.Split(images, torch.arange(11))


def test_batches_in_order(split):
    seen = list(data.batches(split, 4))
    assert [batch.total for batch in seen] == [4, 4, 3]
    assert torch.equal(torch.cat([batch.labels for batch in seen]), split.labels)
    images = torch.cat([batch.images for batch in seen])
    assert images.dtype == torch.float32
    assert torch.equal(images, split.images / 255)


def test_batches_shuffle(split):
    def order(generator):
        return torch.cat([b.labels for b in data.batches(split, 4, generator=generator)]).tolist()

    generator = torch.Generator().manual_seed(3)
    first, second = order(generator), order(generator)
    assert sorted(first) == sorted(second) == list(range(11))
    assert len({tuple(first), tuple(second), tuple(range(11))}) == 3
    assert order(torch.Generator().manual_seed(3)) == first
    for batch in data.batches(split, 4, generator=generator):
        assert torch.equal(batch.images, split.images[batch.labels] / 255)


def test_workers_share_each_batch(split):
    """Together, workers see what one sees, though the last batch does not go round."""
    alone = list(data.batches(split, 5, generator=torch.Generator().manual_seed(3)))
    shares = [
        list(
            data.batches(
                split, 5, generator=torch.Generator().manual_seed(3), rank=rank, world_size=3
            )
        )
        for rank in range(3)
    ]
    assert len(alone[-1].labels) == 1
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert {part.total for part in parts} == {whole.total}


def test_to_input_resizes_and_repeats():
    images = torch.full((3, 1, 28, 28), 51, dtype=torch.uint8)
    images[:, :, :14] = 0
    inputs = data.to_input(images, (32, 20), 3)
    assert inputs.shape == (3, 3, 32, 20)
    assert inputs.is_contiguous()
    assert torch.equal(inputs[:, 0], inputs[:, 2])
    torch.testing.assert_close(inputs[0, 0, 20], torch.full((20,), 0.2))
    assert inputs[0, 0, 10].abs().max() == 0
    assert data.to_input(images[:0], (32, 20), 3).shape == (0, 3, 32, 20)


def test_read_image_exactly(tmp_path):
    grey = torch.randint(256, (28, 28), dtype=torch.uint8)
    Image.fromarray(grey.numpy()).save(tmp_path / "a.png")
    assert torch.equal(data.read_image(tmp_path / "a.png", (28, 28))[0, 0], grey)
    inverted = data.read_image(tmp_path / "a.png", (28, 28), invert=True)
    assert torch.equal(inverted[0, 0], 255 - grey)


def test_read_image_of_other_kinds(tmp_path):
    """Wide, transparent and 16-bit pictures keep their shape and brightness."""
    path = tmp_path / "a.png"
    Image.new("RGB", (56, 28), (200, 200, 200)).save(path)
    wide = data.read_image(path, (28, 28))[0, 0]
    assert wide[:7].max() == 0
    assert wide[21:].max() == 0
    assert abs(int(wide[14, 14]) - 200) <= 1
    inverted = data.read_image(path, (28, 28), invert=True)[0, 0]
    assert inverted[0].max() == 0
    assert abs(int(inverted[14, 14]) - 55) <= 1

    Image.new("RGBA", (28, 28), (255, 0, 0, 0)).save(path)
    assert data.read_image(path, (28, 28)).max() == 0
    assert data.read_image(path, (28, 28), invert=True).max() == 0

    deep = torch.full((28, 28), 0x4000, dtype=torch.uint16)
    Image.fromarray(deep.numpy()).save(path)
    assert abs(int(data.read_image(path, (28, 28))[0, 0, 5, 5]) - 0x40) <= 1


def test_read_image_errors(tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match=r"absent\.png: no such file"):
        data.read_image(tmp_path / "absent.png", (28, 28))
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(data.DataError, match=r"text.png: not a picture"):
        data.read_image(tmp_path / "text.png", (28, 28))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install cnnkern\[images\]"):
        data.read_image(tmp_path / "text.png", (28, 28))
