"""Fashion-MNIST and MNIST as uint8 tensors in memory.

The IDX files are looked for in a folder that the caller names, the user's cache and Debian's
dataset folder, then downloaded; with no network a subset that comes with the package stands in.
A batch is an index and a scale, so there are no worker processes.
"""

import gzip
import math
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pooch
import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = [
    "DATASETS",
    "Batch",
    "DataError",
    "Dataset",
    "Split",
    "batches",
    "load_dataset",
    "locate",
    "read_idx",
    "read_image",
    "to_input",
]

FASHION_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
# The last holds 3500 + 1000 images of Fashion-MNIST, as many of each class.
DATASETS = ("fashion-mnist", "mnist", "fashion-mnist-subset")
FILES = (
    *("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    *("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)
URLS = {
    "fashion-mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
}
# Of the .gz files at the URLs, in the order of FILES.
MD5 = {
    "fashion-mnist": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "mnist": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
}
SYSTEM_DIR = Path("/usr/share/datasets")  # Debian: apt install dataset-fashion-mnist
ASSETS = Path(__file__).parent / "assets"
CONNECT_SECONDS, READ_SECONDS = 4, 30


class DataError(RuntimeError):
    """A data set that cannot be had, or a file that is not what it should be."""


@dataclass(frozen=True)
class Split:
    """Hold images, uint8 ``[N, 1, H, W]``, and their labels, int64 ``[N]``."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """Hold a training and a test split, the names of the classes, and where they came from."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    source: str


class Batch(NamedTuple):
    """Hold one worker's share of a batch: float images in [0, 1], labels, the batch's full size."""

    images: Tensor
    labels: Tensor
    total: int


def load_dataset(
    name: str = "fashion-mnist",
    data_dir: str | Path | None = None,
    *,
    download: bool = True,
    quiet: bool = False,
) -> Dataset:
    """Load a data set by name, from the first place that has it.

    The places: ``data_dir``, which is then the only one; the user's cache; Debian's dataset folder;
    a download into the cache; for Fashion-MNIST, the embedded subset, announced on stderr.

    Args:
        name: fashion-mnist, mnist or fashion-mnist-subset.
        data_dir: a folder with the four IDX files, gzipped or not, or torchvision's root folder.
        download: whether the network may be asked.
        quiet: show no progress bar and no announcement.

    Raises:
        DataError: an unknown name, a folder without the files, a file that is truncated, corrupt
            or foreign, a download with the wrong checksum, or no MNIST to be had.
    """
    if name not in DATASETS:
        raise DataError(f"data set must be one of {', '.join(DATASETS)}, got {name!r}")
    if data_dir is not None:
        return _read_folder(name, _named_folder(name, Path(data_dir)))
    if name == "fashion-mnist-subset":
        return _read_folder(name, ASSETS)
    if folder := locate(name):
        return _read_folder(name, folder)
    problem = "downloading was not allowed"
    if download:
        try:
            return _read_folder(name, _download(name, quiet))
        except OSError as error:  # also what requests raises: offline, refused, cut off, 404
            problem = _cause(error)
    remedy = (
        f"To get it, put the files of {URLS[name]} in {_cache_dir(name)}, or in a folder named "
        "with --data-dir"
    )
    if name != "fashion-mnist":
        raise DataError(
            f"{name} is not on this machine and was not downloaded ({problem}). {remedy}"
        )
    subset = _read_folder("fashion-mnist-subset", ASSETS)
    if not quiet:
        print(
            "WARNING: NOT THE FULL FASHION-MNIST: using the embedded subset of "
            f"{len(subset.train.labels)} training and {len(subset.test.labels)} test images, on "
            f"which accuracies are lower.\n  The reason: {problem}\n  {remedy}, or on Debian: "
            "apt install dataset-fashion-mnist",
            file=sys.stderr,
        )
    return subset


def locate(name: str) -> Path | None:
    """Give the first of the cache and Debian's folder that has all files of a data set, or None."""
    folders = (_cache_dir(name), SYSTEM_DIR / name)
    return next((place for place in folders if len(_find_files(place)) == len(FILES)), None)


def batches(
    split: Split,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    image_size: tuple[int, int] | None = None,
    channels: int = 1,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield the split in batches, shuffled if there is a generator, the last one smaller.

    Every worker draws the same order and takes its slice of each batch, so ``world_size`` workers
    see together what one would see alone; a slice may be empty.

    Args:
        split: uint8 images ``[N, 1, H, W]`` and labels ``[N]``.
        batch_size: images in a batch, over all workers.
        generator: a CPU generator, advanced by one permutation.
        image_size: resize to it, bilinearly, where the images have another.
        channels: repeat the grey channel this often.
        rank: this worker, from 0.
        world_size: the number of workers.
        pin_memory: put the batch in page-locked memory, for copies to a GPU.
    """
    count = len(split.labels)
    order = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
    for chosen in order.split(batch_size):
        mine = chosen.tensor_split(world_size)[rank]
        images = to_input(split.images[mine], image_size, channels)
        labels = split.labels[mine]
        if pin_memory:
            images, labels = images.pin_memory(), labels.pin_memory()
        yield Batch(images, labels, len(chosen))


def to_input(
    images: Tensor, image_size: tuple[int, int] | None = None, channels: int = 1
) -> Tensor:
    """Turn grey bytes ``[N, 1, H, W]`` into floats in [0, 1], ``[N, channels, *image_size]``."""
    floats = images.float().div_(255)
    if image_size is not None and tuple(floats.shape[2:]) != tuple(image_size):
        floats = interpolate(floats, size=tuple(image_size), mode="bilinear", antialias=True)
    return floats if channels == 1 else floats.expand(-1, channels, -1, -1).contiguous()


def read_idx(path: str | Path, ndim: int) -> Tensor:
    """Read a file of unsigned bytes in the IDX format, gzipped or not, as a uint8 tensor.

    The format (yann.lecun.com/exdb/mnist): two zero bytes, a type, the number of dimensions, each
    dimension as a big-endian uint32, then the elements.

    Raises:
        DataError: the file cannot be read, is cut short or damaged, or is not an IDX file of
            unsigned bytes with ``ndim`` dimensions. The message names the file and the fault.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if data[:2] == b"\x1f\x8b":  # by content: files get renamed
        try:
            data = gzip.decompress(data)
        except EOFError as error:
            raise DataError(f"{path}: truncated: the gzip stream ends too soon") from error
        except (gzip.BadGzipFile, zlib.error, struct.error) as error:
            raise DataError(f"{path}: damaged gzip file: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0":
        raise DataError(
            f"{path}: not an IDX file: starts with bytes {data[:4].hex(' ') or '(none)'}"
        )
    if data[2] != 8:
        raise DataError(f"{path}: IDX element type 0x{data[2]:02x}, expected 0x08, unsigned bytes")
    if data[3] != ndim:
        raise DataError(f"{path}: IDX file of {data[3]} dimensions, expected {ndim}")
    start = 4 + 4 * ndim
    if len(data) < start:
        raise DataError(f"{path}: truncated: {len(data)} bytes, the header alone has {start}")
    shape = struct.unpack(f">{ndim}I", data[4:start])
    size = math.prod(shape)
    expected = start + size
    if len(data) != expected:
        fault = "truncated" if len(data) < expected else "too long"
        shown = "x".join(map(str, shape))
        raise DataError(f"{path}: {fault}: {len(data)} bytes, {expected} announced for {shown}")
    if size == 0:
        raise DataError(f"{path}: holds no elements")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).reshape(shape)


def read_image(path: str | Path, image_size: tuple[int, int], invert: bool = False) -> Tensor:
    """Read a picture as the data sets hold theirs: grey, light on dark, uint8 ``[1, 1, H, W]``.

    A picture that is not of that shape is centred on the background colour, never stretched.

    Args:
        path: a file that Pillow reads; transparent parts become background.
        image_size: height and width of the result.
        invert: the picture is dark on light.

    Raises:
        DataError: no such file, or not a picture.
        ModuleNotFoundError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading pictures needs Pillow: pip install cnnkern[images]"
        ) from error
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I"):  # 16 bits, which convert("L") would clip to 8
                picture = picture.convert("I").point(lambda value: value / 257).convert("L")
            background = 255 if invert else 0
            layer = picture.convert("RGBA")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a picture that Pillow can read: {error}") from error
    grey = Image.new("RGBA", layer.size, (background,) * 3 + (255,))
    grey.alpha_composite(layer)
    height, width = image_size
    fitted = ImageOps.pad(grey.convert("L"), (width, height), color=background)
    if invert:
        fitted = ImageOps.invert(fitted)
    return torch.tensor(list(fitted.tobytes()), dtype=torch.uint8).reshape(1, 1, height, width)


def _named_folder(name: str, folder: Path) -> Path:
    """Find a data set's files in or below a folder that the caller named."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    torchvision = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}.get(name, "")
    for place in (folder, folder / name, folder / torchvision):
        found = _find_files(place)
        if len(found) == len(FILES):
            return place
        if found:
            missing = [stem for stem in FILES if stem not in found]
            raise DataError(f"{place}: has no {', '.join(missing)} (gzipped or not)")
    raise DataError(f"{folder}: holds no {name}: no {FILES[0]}, {FILES[0]}.gz and so on")


def _find_files(folder: Path) -> dict[str, Path]:
    """Map each of FILES that the folder has to its path, plain before gzipped."""
    found = {}
    for stem in FILES:
        # Some archives write train-images.idx3-ubyte.
        names = (
            stem,
            f"{stem}.gz",
            stem.replace("-idx", ".idx"),
            stem.replace("-idx", ".idx") + ".gz",
        )
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is not None:
            found[stem] = path
    return found


def _read_folder(name: str, folder: Path) -> Dataset:
    """Read the four files of a folder and check that they belong together."""
    paths = _find_files(folder)
    classes = tuple("0123456789") if name == "mnist" else FASHION_CLASSES
    splits = []
    for images_stem, labels_stem in (FILES[:2], FILES[2:]):
        images = read_idx(paths[images_stem], 3).unsqueeze(1)
        labels = read_idx(paths[labels_stem], 1).long()
        if len(images) != len(labels):
            raise DataError(
                f"{paths[labels_stem]}: {len(labels)} labels for the {len(images)} images of "
                f"{paths[images_stem]}"
            )
        if int(labels.max()) >= len(classes):
            raise DataError(
                f"{paths[labels_stem]}: label {int(labels.max())}, expected 0 to {len(classes) - 1}"
            )
        splits.append(Split(images, labels))
    return Dataset(name, *splits, classes, str(folder))


def _cause(error: OSError) -> str:
    """Name an error of requests by what lies under its layers, when it says so."""
    layered = error.args[0] if error.args else None
    return f"{type(error).__name__}: {getattr(layered, 'reason', error)}"


def _cache_dir(name: str) -> Path:
    return Path(pooch.os_cache("cnnkern")) / name


def _download(name: str, quiet: bool) -> Path:
    """Download what the cache lacks of a data set, and give the cache's folder.

    pooch writes to a temporary name, and renames only what has the right checksum, so a download
    that is cut off leaves nothing behind that looks like a data set.
    """
    folder = _cache_dir(name)
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING" if quiet else level)
    try:
        _fetch_missing(name, folder, quiet)
    finally:
        logger.setLevel(level)
    return folder


def _fetch_missing(name: str, folder: Path, quiet: bool) -> None:
    for stem, md5 in zip(FILES, MD5[name], strict=True):
        url = f"{URLS[name]}{stem}.gz"
        fetch = pooch.HTTPDownloader(
            progressbar=not quiet, chunk_size=1 << 16, timeout=(CONNECT_SECONDS, READ_SECONDS)
        )
        try:
            pooch.retrieve(url, f"md5:{md5}", f"{stem}.gz", folder, downloader=fetch)
        except ValueError as error:
            if isinstance(error, OSError):  # some of requests' errors are both
                raise
            raise DataError(f"{url}: not the file that was expected: {error}") from error
