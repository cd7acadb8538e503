"""The command line: train LeNet, evaluate and use what was trained, describe the installation.

Results go to stdout and everything else to stderr, so the closing lines can be parsed. A mistake of
the user's ends in one line that says what was wrong, and exit status 1.

It is long because every option declares its own help.
"""

import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import cnnkern
from cnnkern import data, train
from cnnkern.lenet import ACTIVATIONS, INITS, POOLS, LeNet
from cnnkern.workers import Workers

__all__ = ["app", "main", "plot_curves"]

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

# The options of `train` that a checkpoint settles: what the next epoch depends on, but for the
# learning rate, which may be changed at a resumption.
SETTLED = {
    "model": (
        *("in_channels", "num_classes", "image_size", "channels", "kernel_size", "padding"),
        *("activation", "pool", "pool_size", "hidden", "init", "algo"),
    ),
    "run": (
        *("dataset", "batch_size", "optimizer", "momentum", "weight_decay", "seed", "dtype"),
        "autocast",
    ),
}


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m cnnkern")


def _one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the errors that a user can cause into one line on stderr and exit status 1."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (
            *(data.DataError, train.CheckpointError, train.DivergedError),
            *(ValueError, ModuleNotFoundError),
        ) as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error

    return run


def _option(text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


DataDir = Annotated[
    Path | None,
    _option("Folder with the IDX files, the only place then looked at.", "Data"),
]
Download = Annotated[bool, _option("Whether the network may be asked.", "Data")]
Device = Annotated[str, _option("cpu, cuda, cuda:N or auto.", "Training")]
Threads = Annotated[
    int | None, _option("CPU threads; torch's choice if not given.", "Training", min=1)
]


@app.command("train")
@_one_line_errors
def train_command(
    ctx: typer.Context,
    dataset: Annotated[str, _option(", ".join(data.DATASETS) + ".", "Data")] = "fashion-mnist",
    data_dir: DataDir = None,
    download: Download = True,
    channels: Annotated[
        str, _option("Output channels of each convolution, e.g. 6,16.", "Network")
    ] = "6,16",
    kernel_size: Annotated[
        str, _option("Window of the convolutions: one int, or one for each.", "Network")
    ] = "5",
    padding: Annotated[
        str | None,
        _option("Likewise; by default half a window for the first, 0 after.", "Network"),
    ] = None,
    activation: Annotated[str, _option(", ".join(ACTIVATIONS) + ".", "Network")] = "sigmoid",
    pool: Annotated[str, _option(", ".join(POOLS) + ".", "Network")] = "avg",
    pool_size: Annotated[int, _option("Window and stride of the pooling.", "Network")] = 2,
    hidden: Annotated[
        str, _option("Widths of the hidden linear layers, e.g. 120,84; or none.", "Network")
    ] = "120,84",
    image_size: Annotated[
        str, _option("Images are resized to it: one int, or height,width.", "Network")
    ] = "28",
    in_channels: Annotated[int, _option("The grey channel is repeated so often.", "Network")] = 1,
    num_classes: Annotated[int, _option("Scores per image.", "Network", "--classes")] = 10,
    init: Annotated[str, _option(", ".join(INITS) + ".", "Network")] = "xavier_uniform",
    algo: Annotated[str, _option("Convolution algorithm to force.", "Network")] = "auto",
    epochs: Annotated[
        int, _option("In total, those before --resume included.", "Training", min=1)
    ] = 10,
    lr: Annotated[
        float | None,
        _option(
            "Learning rate; by default "
            + ", ".join(f"{lr:g} for {name}" for name, (_, lr) in train.OPTIMIZERS.items())
            + ".",
            "Training",
        ),
    ] = None,
    batch_size: Annotated[int, _option("Over all processes.", "Training")] = 256,
    optimizer: Annotated[str, _option(", ".join(train.OPTIMIZERS) + ".", "Training")] = "sgd",
    momentum: Annotated[float, _option("Of momentum and nesterov.", "Training")] = 0.9,
    weight_decay: Annotated[float, _option("Of any optimizer.", "Training")] = 0.0,
    seed: Annotated[int, _option("Of weights and shuffling.", "Training")] = 0,
    device: Device = "auto",
    dtype: Annotated[
        str, _option("Of weights and images: " + ", ".join(train.DTYPES) + ".", "Training")
    ] = "float32",
    autocast: Annotated[str, _option("none, bfloat16 or float16.", "Training")] = "none",
    compile: Annotated[bool, _option("Use torch.compile.", "Training", "--compile")] = False,
    threads: Threads = None,
    checkpoint: Annotated[
        Path | None, _option("Save to this file after every epoch.", "Output")
    ] = None,
    resume: Annotated[Path | None, _option("Continue from this checkpoint.", "Output")] = None,
    plot: Annotated[Path | None, _option("Draw the curves, e.g. curves.png.", "Output")] = None,
    json_path: Annotated[Path | None, _option("Write the results.", "Output", "--json")] = None,
    quiet: Annotated[bool, _option("No progress on stderr.", "Output", "--quiet")] = False,
) -> None:
    """Train LeNet on Fashion-MNIST; under torchrun, with one process per device."""
    options = train.TrainOptions(
        model={
            "in_channels": in_channels,
            "num_classes": num_classes,
            "image_size": _ints("--image-size", image_size),
            "channels": _int_list("--channels", channels),
            "kernel_size": _ints("--kernel-size", kernel_size),
            "padding": None if padding is None else _ints("--padding", padding),
            "activation": activation,
            "pool": pool,
            "pool_size": pool_size,
            "hidden": [] if hidden == "none" else _int_list("--hidden", hidden),
            "init": init,
            "algo": algo,
        },
        dataset=dataset,
        lr=lr,
        batch_size=batch_size,
        optimizer=optimizer,
        momentum=momentum,
        weight_decay=weight_decay,
        seed=seed,
        dtype=dtype,
        autocast=autocast,
    )
    saved = None
    if resume is not None:
        saved = train.load_checkpoint(resume)
        given = {name for name in ctx.params if _was_given(ctx, name)}
        options = _resumed(options, saved["options"], given)
    _check_outputs(checkpoint, plot, json_path)
    if threads is not None:
        torch.set_num_threads(threads)

    workers = Workers.join(device)
    say = _printer(workers.first and not quiet)
    with workers.first_before_others():
        dataset_read = data.load_dataset(
            options.dataset, data_dir, download=download, quiet=quiet or not workers.first
        )
    if saved is not None and dataset_read.name != options.dataset:
        raise ValueError(f"{resume} was trained on {options.dataset}, which is not at hand")
    # What it was, not what was asked for: a resumption must not get another set.
    options = replace(options, dataset=dataset_read.name)
    trainer = train.Trainer(options, dataset_read, workers)
    if saved is not None:
        trainer.restore(saved)
        say(f"resuming after epoch {len(trainer.history)} of {resume}")
    say(f"{dataset_read.name} from {dataset_read.source}")
    say(f"LeNet {trainer.model.summary()}")
    where = _where(workers)
    say(f"training on {where}, {torch.get_num_threads()} threads")
    if compile:
        trainer.compile()
    while len(trainer.history) < epochs:
        entry = trainer.run_epoch(progress=workers.first and not quiet and sys.stderr.isatty())
        say("epoch {epoch}/{} {}".format(epochs, _scores(entry), **entry))
        if checkpoint is not None and workers.first:
            trainer.save(checkpoint)
    speed = trainer.examples_per_second()
    workers.leave()
    if not workers.first:
        return
    if plot is not None:
        plot_curves(trainer.history, plot)
    if json_path is not None:
        json_path.write_text(json.dumps(_results(trainer, where, speed), indent=2) + "\n")
    typer.echo(_scores(trainer.history[-1]))
    typer.echo(f"{speed:.1f} examples/sec on {where}")


@app.command("evaluate")
@_one_line_errors
def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="What train saved.")],
    dataset: Annotated[str | None, _option("The one trained on, if not given.", "Data")] = None,
    data_dir: DataDir = None,
    download: Download = True,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Test a checkpoint on the test images of a data set."""
    if threads is not None:
        torch.set_num_threads(threads)
    saved = train.load_checkpoint(checkpoint)
    options = saved["options"]
    workers = Workers.join(device)
    with workers.first_before_others():
        tested = data.load_dataset(
            dataset or options.dataset, data_dir, download=download, quiet=not workers.first
        )
    model = train.model_from(saved, workers.device)
    loss, accuracy = train.evaluate(model, tested.test, workers, options.dtype, options.autocast)
    workers.leave()
    if workers.first:
        count = len(tested.test.labels)
        typer.echo(
            f"test loss {loss:.3f}, test acc {accuracy:.3f} on {count} images of {tested.name}"
        )


@app.command("predict")
@_one_line_errors
def predict_command(
    images: Annotated[list[Path], typer.Argument(help="PNG, JPEG or other pictures.")],
    checkpoint: Annotated[Path, typer.Option(help="What train saved.")],
    invert: Annotated[bool, typer.Option("--invert", help="They are dark on light.")] = False,
    top: Annotated[int, typer.Option(help="Print so many classes per picture.", min=1)] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
) -> None:
    """Say what pictures show, with the probability that the network gives it."""
    saved = train.load_checkpoint(checkpoint)
    place = Workers.join(device).device
    model = train.model_from(saved, place)
    size = tuple(model.config["image_size"])
    names = dict(enumerate(saved["classes"]))
    for path in images:
        picture = data.read_image(path, size, invert)
        if picture[0, 0, :: max(1, size[0] - 1), :: max(1, size[1] - 1)].float().mean() > 127:
            hint = "without" if invert else "with"
            typer.echo(
                f"{path}: light corners, unlike the training images': {hint} --invert?", err=True
            )
        inputs = data.to_input(picture, channels=model.config["in_channels"])
        with torch.no_grad():
            scores = model(inputs.to(place, train.DTYPES[saved["options"].dtype]))[0]
        best = scores.float().softmax(0).topk(min(top, len(scores)))
        for probability, index in zip(*map(torch.Tensor.tolist, best), strict=True):
            typer.echo(f"{path}: {names.get(index, f'class {index}')} {probability:.3f}")


@app.command("info")
def info_command() -> None:
    """Say what is installed, what is used, what is missing and how to get it."""
    from cnnkern import _C, ops

    build = _C.build_info()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    facts = {
        "cnnkern": f"{cnnkern.__version__} in {Path(__file__).parent}",
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, built against {build['torch']}",
        "compiler": build["compiler"],
        "CPU ISA": f"{_C.cpu_isa()} in use, of {', '.join(_C.cpu_isas())} "
        "(CNNKERN_CPU_ISA chooses)",
        "threads": str(torch.get_num_threads()),
        "CUDA archs built": ", ".join(build["cuda_archs"])
        or "none (build where nvcc is on PATH, with the toolkit of torch's CUDA version)",
        "CUDA toolkit": build["cuda_version"] or "none",
        "CUDA library": ops.cuda_library_status(),
        "GPUs": ", ".join(gpus) or "none that torch finds",
    }
    for package, use in {
        "triton": "pip install triton",
        "matplotlib": "pip install cnnkern[plot]",
        "pillow": "pip install cnnkern[images]",
    }.items():
        facts[package] = _version(package) or f"missing ({use})"
    for name in data.URLS:
        facts[name] = str(data.locate(name) or "not on this machine (train downloads it)")
    for fact, value in facts.items():
        typer.echo(f"{fact + ':':<18}{value}")


@app.command("aot")
@_one_line_errors
def aot_command(
    arch: Annotated[int, typer.Option(help="Compute capability times ten: 80, 90, ...")],
    out: Annotated[Path, typer.Option(help="Folder for the cubins and their JSON.")],
    calls: Annotated[
        Path | None, typer.Option(help="JSON list of calls; by default LeNet's blocks.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the default calls.")] = "float32",
    tiles: Annotated[
        Path | None,
        typer.Option(
            exists=True, help="Tuned tiles, as tune exports them; by default those of the cache."
        ),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="The GPU that they are for, where there are several.")
    ] = None,
) -> None:
    """Compile Triton kernels for the shapes of a list of calls; no GPU is needed.

    Where a problem was tuned on a GPU of that architecture, its tile is used.
    """
    from cnnkern.triton_kernels import aot, tuning

    wanted = aot.default_calls(dtype) if calls is None else json.loads(calls.read_text())
    for path in aot.write(arch, wanted, out, tuning.tiles_for(arch, gpu, tiles)):
        typer.echo(path)


@app.command("tune")
@_one_line_errors
def tune_command(
    calls: Annotated[
        Path | None,
        typer.Option(
            exists=True, help="JSON list of calls, as for aot; by default LeNet's blocks."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the default calls.")] = "float32",
    import_path: Annotated[
        Path | None,
        typer.Option("--import", exists=True, help="Take over an exported file of tiles."),
    ] = None,
    export_path: Annotated[
        Path | None, typer.Option("--export", help="Write all tuned tiles to this file.")
    ] = None,
) -> None:
    """Time tiles of Triton kernels on this GPU and keep the fastest in the user's cache.

    With --import or --export and no --calls nothing is timed.
    """
    from cnnkern.triton_kernels import aot, tuning

    _check_outputs(export_path, None, None)
    if import_path is not None:
        count = tuning.import_tiles(import_path)
        typer.echo(f"{count} tiles for this machine imported from {import_path}")
    if calls is not None or (import_path is None and export_path is None):
        wanted = aot.default_calls(dtype) if calls is None else json.loads(calls.read_text())
        tuning.tune_calls(wanted)
        typer.echo(f"tiles are kept in {tuning.path()}")
    if export_path is not None:
        typer.echo(f"{tuning.export_tiles(export_path)} tiles exported to {export_path}")


def plot_curves(history: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Draw train loss, train accuracy and test accuracy over the epochs, as the book does.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    figure = _figure()
    axes = figure.subplots()
    epochs, losses, accuracies = zip(
        *(point for entry in history for point in entry["curve"]), strict=True
    )
    axes.plot(epochs, losses, "-", label="train loss")
    axes.plot(epochs, accuracies, "m--", label="train acc")
    tested = [entry["epoch"] for entry in history]
    axes.plot(tested, [entry["test_acc"] for entry in history], "g-.", label="test acc")
    axes.set_xlabel("epoch")
    axes.grid()
    axes.legend()
    figure.savefig(path, dpi=150)


def _resumed(
    asked: train.TrainOptions, saved: train.TrainOptions, given: set[str]
) -> train.TrainOptions:
    """Take a checkpoint's options, refusing given ones that it settles otherwise."""
    config = LeNet(**asked.model).config
    pairs = [(name, config[name], saved.model[name]) for name in SETTLED["model"]]
    pairs += [(name, getattr(asked, name), getattr(saved, name)) for name in SETTLED["run"]]
    for name, new, old in pairs:
        if name in given and new != old:
            raise ValueError(
                f"--resume: the checkpoint was trained with {name} {old}, which cannot become {new}"
            )
    return replace(saved, lr=asked.lr) if "lr" in given else saved


def _was_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("curves need matplotlib: pip install cnnkern[plot]") from error
    return Figure(figsize=(5, 3.5), layout="constrained")


def _check_outputs(checkpoint: Path | None, plot: Path | None, json_path: Path | None) -> None:
    """Find out before the training, not after, that a result could not be written."""
    for path in (checkpoint, plot, json_path):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ValueError(f"{path}: cannot be written: a folder, or in none that exists")
    if plot is not None:
        known = _figure().canvas.get_supported_filetypes()
        if plot.suffix.lstrip(".") not in known:
            raise ValueError(f"{plot}: matplotlib writes {', '.join(known)}")


def _results(trainer: train.Trainer, where: str, speed: float) -> dict[str, Any]:
    last = trainer.history[-1]
    return {
        **{name: last[name] for name in ("loss", "train_acc", "test_loss", "test_acc")},
        "examples_per_sec": speed,
        "seconds": trainer.seconds,
        "device": where,
        "threads": torch.get_num_threads(),
        "epochs": len(trainer.history),
        "history": trainer.history,
        "options": asdict(trainer.options) | {"model": trainer.model.config},
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "data": {
            "source": trainer.data.source,
            "train": len(trainer.data.train.labels),
            "test": len(trainer.data.test.labels),
        },
        "versions": {
            "cnnkern": cnnkern.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _scores(entry: dict[str, Any]) -> str:
    return "loss {loss:.3f}, train acc {train_acc:.3f}, test acc {test_acc:.3f}".format(**entry)


def _where(workers: Workers) -> str:
    if workers.world_size == 1:
        return str(workers.device)
    return f"{workers.world_size} x {workers.device.type}"


def _printer(active: bool) -> Callable[[str], None]:
    return (lambda text: typer.echo(text, err=True)) if active else (lambda text: None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ints(name: str, text: str) -> int | list[int]:
    """Read "5" as an int and "5,3" as a list."""
    values = _int_list(name, text)
    return values[0] if len(values) == 1 else values


def _int_list(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name} must be ints with commas between, got {text!r}") from error
