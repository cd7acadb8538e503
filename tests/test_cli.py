"""The command line: what it prints, saves, refuses, and that a run can be cut and shared out."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cnnkern
from cnnkern import cli, data, train

SUBSET = ["--dataset", "fashion-mnist-subset", "--device", "cpu"]
QUICK = [*SUBSET, "--activation", "relu", "--pool", "max", "--optimizer", "adam", "--batch-size"]
QUICK += ["100", "--lr", "0.003", "--channels", "4,8", "--hidden", "40"]


def run(*arguments: object):
    """Run a command in this process, and let what is not a user's mistake through."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*arguments: object) -> str:
    """Run a command that must end in one line of error, and give that line."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same(left: object, right: object) -> bool:
    """Compare nested dicts and lists with tensors in them, bit for bit."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Train on one thread: on a loaded machine, threads that spin for each other take ten times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train two epochs, with every output asked for."""
    folder = tmp_path_factory.mktemp("trained")
    outputs = ["--checkpoint", folder / "a.pt", "--plot", folder / "a.png", "--json"]
    return folder, run("train", *QUICK, "--epochs", 2, *outputs, folder / "a.json")


def test_train_closes_with_two_lines(trained):
    _, result = trained
    assert result.exit_code == 0
    number = r"\d\.\d{3}"
    assert re.fullmatch(
        rf"loss {number}, train acc {number}, test acc {number}\n"
        r"\d+\.\d examples/sec on cpu\n",
        result.stdout,
    )
    assert "LeNet 1x28x28 -> 4x14x14 -> 8x5x5 -> 40 -> 10" in result.stderr
    assert re.search(r"^epoch 2/2 loss ", result.stderr, re.MULTILINE)


def test_train_writes_what_it_printed(trained):
    folder, result = trained
    results = json.loads((folder / "a.json").read_text())
    assert result.stdout == (
        f"loss {results['loss']:.3f}, train acc {results['train_acc']:.3f}, "
        f"test acc {results['test_acc']:.3f}\n"
        f"{results['examples_per_sec']:.1f} examples/sec on cpu\n"
    )
    assert results["examples_per_sec"] == pytest.approx(2 * 3500 / results["seconds"])
    assert results["epochs"] == len(results["history"]) == 2
    assert results["test_acc"] > 0.6
    assert results["options"]["model"]["channels"] == [4, 8]
    assert results["data"] == {"source": str(data.ASSETS), "train": 3500, "test": 1000}
    assert results["versions"]["cnnkern"] == cnnkern.__version__
    with Image.open(folder / "a.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_quiet_train_says_nothing_on_stderr():
    result = run("train", *QUICK, "--epochs", 1, "--quiet")
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 2


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, optimizer):
    """One epoch and one more give the bits that two epochs give: weights, optimiser, all."""
    arguments = [*SUBSET, "--optimizer", optimizer, "--seed", "7", "--batch-size", "200"]
    run("train", *arguments, "--epochs", 2, "--checkpoint", tmp_path / "whole.pt")
    run("train", *arguments, "--epochs", 1, "--checkpoint", tmp_path / "half.pt")
    half = load(tmp_path / "half.pt")
    torch.manual_seed(99)  # a resumption must not lean on this process's state
    resumed = ["--resume", tmp_path / "half.pt", "--checkpoint", tmp_path / "resumed.pt"]
    result = run("train", "--device", "cpu", "--epochs", 2, *resumed)
    assert "resuming after epoch 1" in result.stderr
    whole, resumed = load(tmp_path / "whole.pt"), load(tmp_path / "resumed.pt")
    for state in (whole, resumed):
        assert state.pop("seconds") > 0
    assert whole["history"][-1]["epoch"] == 2
    assert same(whole, resumed)
    assert not same(whole["model"], half["model"])


def test_resume_takes_a_new_rate_and_nothing_else(trained, tmp_path):
    folder, _ = trained
    checkpoint = folder / "a.pt"
    common = ["train", "--device", "cpu", "--resume", checkpoint]
    result = run(*common, "--epochs", 3, "--lr", "0.0005", "--checkpoint", tmp_path / "b.pt")
    assert result.exit_code == 0
    after = load(tmp_path / "b.pt")
    assert after["options"]["lr"] == after["optimizer"]["param_groups"][0]["lr"] == 0.0005
    assert len(after["history"]) == 3
    assert "channels [4, 8], which cannot become [6, 8]" in refused(*common, "--channels", "6,8")
    assert "seed 0, which cannot become 1" in refused(*common, "--seed", "1")
    # Said again, as it was, an option is no contradiction; and two epochs are there already.
    again = run(*common, "--channels", "4,8", "--kernel-size", "5", "--epochs", 2)
    scores = "loss {loss:.3f}, train acc {train_acc:.3f}, test acc {test_acc:.3f}"
    assert again.stdout.startswith(scores.format(**load(checkpoint)["history"][-1]))


def test_evaluate_repeats_the_test_accuracy(trained):
    folder, _ = trained
    last = load(folder / "a.pt")["history"][-1]
    result = run("evaluate", folder / "a.pt", "--device", "cpu")
    assert result.stdout == (
        f"test loss {last['test_loss']:.3f}, test acc {last['test_acc']:.3f} "
        "on 1000 images of fashion-mnist-subset\n"
    )


@pytest.mark.parametrize("invert", [False, True])
def test_predict(trained, tmp_path, invert):
    """Predict test images from PNG files as the network does from the tensors."""
    folder, _ = trained
    checkpoint = train.load_checkpoint(folder / "a.pt")
    model = train.model_from(checkpoint, torch.device("cpu"))
    test = data.load_dataset("fashion-mnist-subset").test
    paths, lines = [], []
    with torch.no_grad():
        chances = model(data.to_input(test.images[:5])).softmax(1)
    for index in range(5):
        pixels = test.images[index, 0]
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray((255 - pixels if invert else pixels).numpy()).save(paths[-1])
        for chance, label in zip(*chances[index].topk(2), strict=True):
            lines.append((f"{paths[-1]}: {data.FASHION_CLASSES[label]}", float(chance)))
    options = ["--checkpoint", folder / "a.pt", "--device", "cpu", "--top", 2]
    options += ["--invert"] if invert else []
    result = run("predict", *paths, *options)
    printed = [line.rpartition(" ") for line in result.stdout.splitlines()]
    assert [name for name, _, _ in printed] == [name for name, _ in lines]
    for (_, _, number), (_, chance) in zip(printed, lines, strict=True):
        assert abs(float(number) - chance) < 1e-3
    assert result.stderr == ""
    if invert:
        hint = run("predict", *paths, *options[:-1]).stderr
        assert hint.count("with --invert?") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--channels", "6,16,32,64"], "avg pool 3, window 2, shrinks the 1x1 image"),
        (["--channels", "6,x"], "--channels must be ints with commas between, got '6,x'"),
        (["--kernel-size", "5,3,3"], "kernel_size must be one int or 2 of them"),
        (["--pool", "median"], "pool must be one of none, max, avg, got 'median'"),
        (["--optimizer", "lion"], "optimizer must be one of sgd"),
        (["--classes", "5"], "5 classes, but fashion-mnist-subset has 10"),
        (["--device", "tpu"], "device must be auto, cpu or cuda, got 'tpu'"),
        (["--data-dir", "/no/such/folder"], "/no/such/folder: no such folder"),
        (["--dataset", "cifar"], "data set must be one of fashion-mnist, mnist"),
        (["--plot", "/no/such/folder/a.png"], "/no/such/folder/a.png: cannot be written"),
        (["--plot", "curves.bogus"], "curves.bogus: matplotlib writes"),
        (["--resume", "/no/such/checkpoint"], "/no/such/checkpoint: no such checkpoint"),
        (["--resume", __file__], "not a checkpoint, or a damaged one"),
        (["--lr", "1e9", "--activation", "relu", "--quiet"], "the loss is nan in batch"),
    ],
)
def test_train_refuses_in_one_line(arguments, message):
    assert message in refused("train", *SUBSET, "--quiet", "--epochs", 1, *arguments)


def test_other_commands_refuse_in_one_line(trained, tmp_path):
    folder, _ = trained
    torch.save({"weights": torch.ones(3)}, tmp_path / "other.pt")
    assert "not a cnnkern-lenet" in refused("evaluate", tmp_path / "other.pt")
    whole = (folder / "a.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    assert "a damaged one" in refused("evaluate", tmp_path / "half.pt")
    absent = tmp_path / "absent.png"
    assert "absent.png: no such file" in refused(
        "predict", absent, "--checkpoint", folder / "a.pt", "--device", "cpu"
    )


def test_missing_matplotlib_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = refused("train", *SUBSET, "--plot", tmp_path / "a.png")
    assert "pip install cnnkern[plot]" in message


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        (["--dtype", "bfloat16"], torch.bfloat16),
        (["--dtype", "float64"], torch.float64),
        (["--autocast", "bfloat16"], torch.float32),
        (["--image-size", "32,30", "--in-channels", "2"], torch.float32),
    ],
    ids=["bfloat16", "float64", "autocast", "sizes"],
)
def test_train_in_other_types_and_sizes(tmp_path, arguments, dtype):
    result = run(
        "train", *QUICK, *arguments, "--epochs", 2, "--checkpoint", tmp_path / "a.pt", "--quiet"
    )
    assert result.exit_code == 0
    state = load(tmp_path / "a.pt")
    assert state["model"]["features.0.weight"].dtype == dtype
    assert state["history"][1]["loss"] < 0.8 * state["history"][0]["loss"]
    printed = re.search(r"test acc (\S+)", run("evaluate", tmp_path / "a.pt").stdout)
    assert printed.group(1) == f"{state['history'][1]['test_acc']:.3f}"


def test_two_processes_train_as_one(tmp_path):
    """DDP on two processes gives one process's losses and weights, and prints once."""
    # 3500 images in batches of 3499 leave one image, and so nothing, to the second process.
    arguments = [*SUBSET, "--batch-size", "3499", "--epochs", "3", "--lr", "0.5"]
    run("train", *arguments, "--checkpoint", tmp_path / "one.pt")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += ["-m", "cnnkern", "train", *arguments, "--checkpoint", str(tmp_path / "two.pt")]
    done = subprocess.run(
        launch,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"\d+\.\d examples/sec on 2 x cpu", lines[1])
    assert done.stderr.count("epoch 3/3") == 1
    one, two = load(tmp_path / "one.pt"), load(tmp_path / "two.pt")
    for alone, shared in zip(one["history"], two["history"], strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-4)
        assert shared["train_acc"] == pytest.approx(alone["train_acc"], abs=2e-3)
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=0, atol=1e-3)
    assert lines[0].startswith(f"loss {two['history'][-1]['loss']:.3f}, train acc ")


def test_info_names_what_is_used():
    result = run("info")
    assert result.exit_code == 0
    facts = dict(line.split(":", 1) for line in result.stdout.splitlines())
    assert facts["torch"].split(",")[0].strip() == torch.__version__
    assert facts["cnnkern"].split()[0] == cnnkern.__version__
    assert facts["CPU ISA"].split()[0] == cnnkern._C.cpu_isa()
    assert facts["threads"].strip() == str(torch.get_num_threads())
    for name in ("compiler", "CUDA archs built", "CUDA library", "triton", "pillow", "mnist"):
        assert facts[name].strip()


def test_module_runs():
    """``python -m cnnkern`` reaches the commands."""
    done = subprocess.run(
        [sys.executable, "-m", "cnnkern", "predict"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "python -m cnnkern predict" in done.stderr
