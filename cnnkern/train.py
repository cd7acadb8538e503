"""Train LeNet as the book's train_ch6 does, on one process or under torchrun.

Timed as the book times it: zero_grad, the copy to the device, forward, loss, backward, step and
the running metrics are inside the timer; loading and evaluating are not. A checkpoint carries all
that the next epoch depends on, so that on the CPU a resumed run equals an uninterrupted one.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from cnnkern.data import Dataset, Split, batches
from cnnkern.lenet import LeNet
from cnnkern.workers import Workers

__all__ = [
    "DTYPES",
    "OPTIMIZERS",
    "CheckpointError",
    "DivergedError",
    "TrainOptions",
    "Trainer",
    "Workers",
    "evaluate",
    "load_checkpoint",
    "model_from",
]

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Each with the learning rate that is used when none is given; sgd's is the book's.
OPTIMIZERS: dict[str, tuple[Callable[..., optim.Optimizer], float]] = {
    "sgd": (optim.SGD, 0.9),
    "momentum": (optim.SGD, 0.1),
    "nesterov": (partial(optim.SGD, nesterov=True), 0.1),
    "adam": (optim.Adam, 1e-3),
    "adamw": (optim.AdamW, 1e-3),
    "rmsprop": (optim.RMSprop, 1e-3),
    "adagrad": (optim.Adagrad, 1e-2),
}
FORMAT = "cnnkern-lenet-1"
EVALUATION_BATCH = 1024
POINTS_PER_EPOCH = 5  # of the curves, as in the book


class CheckpointError(RuntimeError):
    """A file that is not a checkpoint of this trainer, or one that does not fit."""


class DivergedError(RuntimeError):
    """A loss that is no longer a finite number."""


@dataclass
class TrainOptions:
    """Hold what a training run depends on; a checkpoint stores it.

    ``model`` holds LeNet's arguments, ``batch_size`` counts over all workers, ``lr`` None means the
    optimiser's own default.
    """

    model: dict[str, Any] = field(default_factory=dict)
    dataset: str = "fashion-mnist"
    lr: float | None = None
    batch_size: int = 256
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0
    dtype: str = "float32"
    autocast: str = "none"

    def __post_init__(self) -> None:
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("autocast", self.autocast, ("none", "bfloat16", "float16"))
        if self.lr is None:
            self.lr = OPTIMIZERS[self.optimizer][1]
        for name, least in {"batch_size": 1, "momentum": 0, "weight_decay": 0, "lr": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"train: {name} must be at least {least}, got {getattr(self, name)}"
                )


class Trainer:
    """Train a LeNet, one epoch at a time.

    Args:
        options: the run.
        data: what to train and test on.
        workers: where; the process alone on its device by default.

    Attributes: ``model``, the network; ``history``, a dict for each epoch with ``epoch``, ``loss``,
    ``train_acc``, ``test_acc`` and the ``curve`` of (epoch, loss, train_acc) inside it; ``seconds``
    of training so far, as timed in this process.

    Raises:
        ValueError: options that LeNet refuses, or fewer classes than the data has.
    """

    def __init__(
        self,
        options: TrainOptions,
        data: Dataset,
        workers: Workers | None = None,
    ) -> None:
        self.options, self.data = options, data
        self.workers = workers or Workers(torch.device("cpu"))
        device = self.workers.device
        torch.manual_seed(options.seed)
        self.shuffle = torch.Generator().manual_seed(options.seed)
        self.model = LeNet(**options.model).to(device, DTYPES[options.dtype])
        classes = self.model.config["num_classes"]
        if classes < len(data.classes):
            raise ValueError(f"train: {classes} classes, but {data.name} has {len(data.classes)}")
        self.optimizer = _make_optimizer(self.model.parameters(), options)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.autocast == "float16")
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.net: nn.Module = self.model
        if self.workers.world_size > 1:
            self.net = DistributedDataParallel(self.model)

    def step(self, images: Tensor, labels: Tensor, total: int) -> tuple[float, float]:
        """Take one optimiser step on a batch, and give the sum of its losses and its hits.

        Args:
            images: this process's share, ``[N, C, H, W]`` on any device.
            labels: ``[N]``.
            total: images in the batch over all processes.
        """
        self.optimizer.zero_grad()
        loss, loss_sum, hits = self._loss(images, labels, total)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # One read waits for the device, so the time is that of the work and not of its launch.
        loss_value, hit_count = torch.stack((loss_sum, hits.to(loss_sum.dtype))).tolist()
        return loss_value, hit_count

    def _loss(self, images: Tensor, labels: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
        """Give what to differentiate, and the sum of the losses and the number of hits."""
        device, options = self.workers.device, self.options
        images = images.to(device, DTYPES[options.dtype], non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        with _autocast(device, options.autocast):
            logits = self.net(images)
        loss_sum = _loss_sum(logits, labels)
        # Over the batch's full size, not a mean of this share: shares can differ by one, and DDP,
        # which averages gradients over the processes, then gives that of the whole batch.
        loss = loss_sum * (self.workers.world_size / total)
        return loss, loss_sum.detach(), (logits.argmax(1) == labels).sum()

    def compile(self) -> None:
        """Pass the network through ``torch.compile``, now: for all batch sizes of an epoch.

        Compiling takes longer than an epoch, and is no part of the speed that is reported.
        """
        self.net = torch.compile(self.net)
        count, batch_size = len(self.data.train.labels), self.options.batch_size
        for total in filter(None, (min(count, batch_size), count % batch_size)):
            first = Split(self.data.train.images[:total], self.data.train.labels[:total])
            for images, labels, _ in _loader(first, batch_size, self.model, self.workers, None):
                self._loss(images, labels, total)[0].backward()
        self.optimizer.zero_grad()

    def run_epoch(self, progress: bool = False) -> dict[str, Any]:
        """Train for an epoch, evaluate on the test split, and give the new entry of ``history``.

        Raises:
            DivergedError: the loss is not finite.
        """
        epoch, options = len(self.history) + 1, self.options
        count = math.ceil(len(self.data.train.labels) / options.batch_size)
        every = max(1, count // POINTS_PER_EPOCH)
        sums = [0.0, 0.0, 0.0]  # loss, hits, images
        curve: list[tuple[float, float, float]] = []
        self.model.train()
        loader = _loader(
            self.data.train, options.batch_size, self.model, self.workers, self.shuffle
        )
        with tqdm(total=count, desc=f"epoch {epoch}", leave=False, disable=not progress) as bar:
            for number, batch in enumerate(loader, 1):
                start = time.perf_counter()
                loss, hits = self.step(*batch)
                sums = [sums[0] + loss, sums[1] + hits, sums[2] + len(batch.labels)]
                self.seconds += time.perf_counter() - start
                if not math.isfinite(loss):
                    raise DivergedError(
                        f"train: the loss is {loss} in batch {number} of epoch {epoch}; "
                        f"a learning rate below {options.lr} may help"
                    )
                bar.update()
                if number % every == 0 or number == count:
                    total_loss, total_hits, total = self.workers.sum(sums)
                    curve.append(
                        (epoch - 1 + number / count, total_loss / total, total_hits / total)
                    )
                    bar.set_postfix_str(f"loss {curve[-1][1]:.3f}, acc {curve[-1][2]:.3f}")
        test_loss, test_acc = evaluate(
            self.model, self.data.test, self.workers, options.dtype, options.autocast
        )
        self.history.append(
            {
                "epoch": epoch,
                "loss": curve[-1][1],
                "train_acc": curve[-1][2],
                "test_loss": test_loss,
                "test_acc": test_acc,
                "curve": curve,
            }
        )
        return self.history[-1]

    def examples_per_second(self) -> float:
        """Give the images trained on per second, over all epochs and all processes."""
        images = len(self.data.train.labels) * len(self.history)
        return images / max(self.workers.max(self.seconds), 1e-9)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint, replacing an older one only when it is whole."""
        cuda = self.workers.device.type == "cuda"
        state = {
            "format": FORMAT,
            "options": asdict(self.options) | {"model": self.model.config},
            "classes": list(self.data.classes),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if cuda else None,
            "shuffle": self.shuffle.get_state(),
            "history": self.history,
            "seconds": self.seconds,
        }
        partial = Path(f"{path}.partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Continue from a checkpoint of a run with the same network, data and optimiser."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr  # the checkpoint's, unless the caller chose another
        self.scaler.load_state_dict(checkpoint["scaler"])
        torch.set_rng_state(checkpoint["rng"])
        if self.workers.device.type == "cuda" and checkpoint["cuda_rng"] is not None:
            torch.cuda.set_rng_state(checkpoint["cuda_rng"])
        self.shuffle.set_state(checkpoint["shuffle"])
        self.history = [dict(entry) for entry in checkpoint["history"]]
        self.seconds = checkpoint["seconds"]


@torch.no_grad()
def evaluate(
    model: LeNet,
    split: Split,
    workers: Workers,
    dtype: str = "float32",
    autocast: str = "none",
) -> tuple[float, float]:
    """Give the mean loss and the accuracy of a network on a split, over all processes.

    The network's mode is left as it was found.
    """
    was_training = model.training
    model.eval()
    sums = [0.0, 0.0, 0.0]
    for images, labels, _ in _loader(split, EVALUATION_BATCH, model, workers, None):
        with _autocast(workers.device, autocast):
            logits = model(images.to(workers.device, DTYPES[dtype]))
        labels = labels.to(workers.device)
        loss = _loss_sum(logits, labels)
        hits = (logits.argmax(1) == labels).sum()
        sums = [sums[0] + loss.item(), sums[1] + hits.item(), sums[2] + len(labels)]
    model.train(was_training)
    loss_sum, hit_sum, count = workers.sum(sums)
    return loss_sum / count, hit_sum / count


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that ``Trainer.save`` wrote, onto the CPU.

    Raises:
        CheckpointError: no such file, or one that is damaged or something else.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load documents no narrower set
        fault = str(error).partition("\n")[0][:100]
        raise CheckpointError(f"{path}: not a checkpoint, or a damaged one: {fault}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a {FORMAT} checkpoint")
    known = {option.name for option in fields(TrainOptions)}
    state["options"] = TrainOptions(
        **{name: value for name, value in state["options"].items() if name in known}
    )
    return state


def model_from(checkpoint: dict[str, Any], device: torch.device) -> LeNet:
    """Build the network of a checkpoint, with its weights, for inference."""
    options = checkpoint["options"]
    model = LeNet(**options.model).to(device, DTYPES[options.dtype])
    model.load_state_dict(checkpoint["model"])
    return model.eval()


def _make_optimizer(parameters: Iterator[nn.Parameter], options: TrainOptions) -> optim.Optimizer:
    make, _ = OPTIMIZERS[options.optimizer]
    heavy = options.optimizer in ("momentum", "nesterov")
    extra = {"momentum": options.momentum} if heavy else {}
    return make(parameters, lr=options.lr, weight_decay=options.weight_decay, **extra)


def _loader(
    split: Split,
    batch_size: int,
    model: LeNet,
    workers: Workers,
    generator: torch.Generator | None,
) -> Iterator[Any]:
    return batches(
        split,
        batch_size,
        generator=generator,
        image_size=tuple(model.config["image_size"]),
        channels=model.config["in_channels"],
        rank=workers.rank,
        world_size=workers.world_size,
        pin_memory=workers.device.type == "cuda",
    )


def _loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum the cross entropies, in float32 where the scores are in half precision."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return cross_entropy(logits.to(wide), labels, reduction="sum")


def _autocast(device: torch.device, name: str) -> contextlib.AbstractContextManager[Any]:
    if name == "none":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[name])


def _check_choice(name: str, value: str, choices: Sequence[str] | dict[str, Any]) -> None:
    if value not in choices:
        raise ValueError(f"train: {name} must be one of {', '.join(choices)}, got {value!r}")
