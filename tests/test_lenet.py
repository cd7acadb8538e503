"""LeNet against the same network in torch.nn, its knobs, and its trainer."""

import copy
import time
from functools import partial

import pytest
import torch
from torch import nn

from cnnkern import data, train
from cnnkern.lenet import INITS, LeNet
from cnnkern.nn import ConvBlock
from cnnkern.workers import Workers


def book_lenet() -> nn.Sequential:
    """Build the chapter's network in torch.nn, initialised as the book's init_weights does."""
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2, 2)),
        *(nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2, 2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10)),
    )
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    return net


def modern_lenet() -> nn.Sequential:
    """Build a variant with other windows, ReLU, max pooling and one hidden layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)),
        *(nn.Conv2d(8, 12, 4, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Flatten()),
        *(nn.Linear(432, 50), nn.ReLU(), nn.Linear(50, 10)),
    )


MODERN = {
    "channels": (8, 12),
    "kernel_size": (3, 4),
    "padding": 1,
    "activation": "relu",
    "pool": "max",
    "hidden": (50,),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Train on one thread: on a loaded machine, threads that spin for each other take ten times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def subset():
    return data.load_dataset("fashion-mnist-subset")


def test_is_the_books_network():
    torch.manual_seed(5)
    ours = LeNet()
    torch.manual_seed(5)
    book = book_lenet()
    for mine, theirs in zip(ours.parameters(), book.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert sum(p.numel() for p in ours.parameters()) == 61706
    assert ours.shapes == [(1, 28, 28), (6, 14, 14), (16, 5, 5)]
    assert ours.summary() == ("1x28x28 -> 6x14x14 -> 16x5x5 -> 120 -> 84 -> 10, 61706 parameters")


@pytest.mark.parametrize(
    ("config", "make", "lr"),
    [({}, book_lenet, 0.9), (MODERN, modern_lenet, 0.1)],
    ids=["book", "modern"],
)
def test_first_losses_equal_torchs(subset, config, make, lr):
    """Twenty steps of SGD from the same weights: losses, hits and, in the end, weights agree."""
    torch.manual_seed(0)
    twin = make()
    trainer = train.Trainer(train.TrainOptions(model=config, lr=lr), subset)
    with torch.no_grad():
        for mine, theirs in zip(trainer.model.parameters(), twin.parameters(), strict=True):
            mine.copy_(theirs)
    before = copy.deepcopy(twin.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    ours, torchs = [], []
    loader = [*data.batches(subset.train, 256, generator=generator)]
    loader += [*data.batches(subset.train, 256, generator=generator)]
    for batch in loader[:20]:
        ours.append(trainer.step(*batch)[0] / len(batch.labels))
        loss = nn.functional.cross_entropy(twin(batch.images), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torchs.append(loss.item())
    assert len(ours) == 20
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(torchs), rtol=0, atol=1e-3)
    for mine, (name, theirs) in zip(
        trainer.model.parameters(), twin.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(mine.detach(), theirs, rtol=0, atol=2e-3)
        assert not torch.equal(theirs, before[name])


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        ({"channels": (4,)}, [(1, 28, 28), (4, 14, 14)]),
        (
            {"channels": (4, 6, 8), "padding": 2, "kernel_size": (5, 5, 3)},
            [(1, 28, 28), (4, 14, 14), (6, 7, 7), (8, 4, 4)],
        ),
        ({"image_size": (32, 20), "in_channels": 3}, [(3, 32, 20), (6, 16, 10), (16, 6, 3)]),
        ({"pool": "none"}, [(1, 28, 28), (6, 28, 28), (16, 24, 24)]),
        ({"pool": "max", "pool_size": 3}, [(1, 28, 28), (6, 9, 9), (16, 1, 1)]),
        ({"kernel_size": 3}, [(1, 28, 28), (6, 14, 14), (16, 6, 6)]),
        ({"hidden": (), "num_classes": 4}, [(1, 28, 28), (6, 14, 14), (16, 5, 5)]),
        ({"activation": "none"}, [(1, 28, 28), (6, 14, 14), (16, 5, 5)]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_knobs(config, shapes):
    """Sizes are as foretold, and ``config`` rebuilds the network."""
    model = LeNet(**config)
    images = torch.rand(2, *shapes[0])
    measured = [tuple(images.shape[1:])]
    for block in model.features:
        images = block(images)
        measured.append(tuple(images.shape[1:]))
    assert measured == model.shapes == shapes
    images = torch.rand(2, *shapes[0])
    scores = model(images)
    assert scores.shape == (2, config.get("num_classes", 10))
    again = LeNet(**model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images), scores)
    assert again.config == model.config


def test_arguments_reach_the_blocks():
    model = LeNet(activation="tanh", pool="max", pool_size=3, kernel_size=3, algo="direct")
    for block in model.features:
        assert isinstance(block, ConvBlock)
        assert (block.activation, block.pool, block.algo) == ("tanh", "max", "direct")
        assert block.pool_kernel_size in (3, (3, 3))
        assert block.pool_stride in (3, (3, 3))
    assert [type(layer) for layer in model.classifier[1::2]] == [nn.Tanh, nn.Tanh]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"channels": (6, 16, 32)}, r"avg pool 3, window 2, shrinks the 1x1 image"),
        ({"channels": (6, 16), "image_size": 8}, "convolution 2, window 5 and padding 0.* 4x4"),
        ({"channels": ()}, "at least one convolution"),
        ({"channels": (6, 0)}, r"channels must be ints of at least 1, got \[6, 0\]"),
        ({"kernel_size": (5, 3, 3)}, r"kernel_size must be one int or 2 of them, got \[5, 3, 3\]"),
        ({"padding": (1,)}, r"padding must be one int or 2 of them, got \[1\]"),
        ({"padding": -1}, r"padding must be ints of at least 0"),
        ({"kernel_size": 0}, "kernel_size must be ints of at least 1"),
        ({"hidden": (120, 2.5)}, "hidden must be ints of at least 1"),
        ({"num_classes": 0}, "num_classes must be ints of at least 1"),
        ({"image_size": (28, 28, 1)}, "image_size must be one int or 2 of them"),
        ({"activation": "swish"}, "activation must be one of none, relu, .*, got 'swish'"),
        ({"pool": "median"}, "pool must be one of none, max, avg, got 'median'"),
        ({"init": "zeros"}, "init must be one of xavier_uniform, .*, got 'zeros'"),
    ],
)
def test_refuses(config, message):
    with pytest.raises(ValueError, match=f"LeNet: .*{message}|LeNet: {message}"):
        LeNet(**config)


def test_inits_differ_and_leave_biases_alone():
    weights, biases = {}, set()
    for init in INITS:
        torch.manual_seed(0)
        layer = LeNet(init=init).features[1]
        weights[init] = layer.weight.detach()
        # Values, and not their use of the random stream: a layer's bias is drawn before any init.
        biases.add(tuple(layer.bias.tolist()))
    assert len({tuple(weight.flatten().tolist()) for weight in weights.values()}) == len(INITS)
    assert len(biases) == 1
    bound = (6 / ((6 + 16) * 25)) ** 0.5
    assert 0.95 * bound < weights["xavier_uniform"].abs().max() <= bound
    assert abs(weights["normal"].std() - 0.01) < 1e-3
    assert abs(weights["kaiming_normal"].std() - (2 / 150) ** 0.5) < 0.01


# The defaults are for the book's sigmoids; ReLU wants smaller steps of plain gradients.
RELU_RATES = {"sgd": 0.1, "momentum": 0.01, "nesterov": 0.01, "adam": 3e-3, "adamw": 3e-3}
RELU_RATES |= {"rmsprop": 1e-3, "adagrad": 1e-2}


@pytest.mark.parametrize("optimizer", train.OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(subset, optimizer):
    options = train.TrainOptions(model=MODERN, optimizer=optimizer, lr=RELU_RATES[optimizer])
    trainer = train.Trainer(options, subset)
    batch = next(data.batches(subset.train, 64))
    losses = [trainer.step(*batch)[0] / 64 for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_optimizers_take_their_arguments(subset):
    assert train.TrainOptions().lr == 0.9
    assert train.TrainOptions(optimizer="adam").lr == 1e-3
    options = train.TrainOptions(
        optimizer="nesterov", lr=0.3, momentum=0.7, weight_decay=0.01, model={"pool": "max"}
    )
    group = train.Trainer(options, subset).optimizer.param_groups[0]
    taken = [group[name] for name in ("lr", "momentum", "weight_decay", "nesterov")]
    assert taken == [0.3, 0.7, 0.01, True]


def test_learns_the_subset(subset):
    options = train.TrainOptions(model=MODERN, optimizer="adam", lr=3e-3, batch_size=64)
    trainer = train.Trainer(options, subset)
    first = trainer.run_epoch()
    last = trainer.run_epoch()
    assert last["loss"] < 0.75 * first["loss"]
    assert last["test_acc"] > 0.7
    assert [entry["epoch"] for entry in trainer.history] == [1, 2]
    assert last["curve"][-1] == (2.0, last["loss"], last["train_acc"])
    assert len(last["curve"]) in (5, 6)


def test_epoch_metrics_are_running_means(subset, monkeypatch):
    """The epoch's loss and accuracy are sums over batches, the last and smaller one by its size."""
    trainer = train.Trainer(train.TrainOptions(batch_size=1000), subset)
    results = iter([(2000.0, 100.0), (1000.0, 300.0), (500.0, 500.0), (0.0, 500.0)])
    monkeypatch.setattr(trainer, "step", lambda *batch: next(results))
    entry = trainer.run_epoch()
    assert entry["loss"] == 1.0
    assert entry["train_acc"] == 0.4
    assert [round(point[1], 4) for point in entry["curve"]] == [2.0, 1.5, 1.1667, 1.0]


def test_timer_covers_steps_and_not_loading(subset, monkeypatch):
    trainer = train.Trainer(train.TrainOptions(batch_size=700), subset)
    quick_step, quick_batches = trainer.step, train.batches

    def slow_step(*batch):
        time.sleep(0.05)
        return quick_step(*batch)

    def slow_batches(*args, **kwargs):
        for batch in quick_batches(*args, **kwargs):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(trainer, "step", slow_step)
    monkeypatch.setattr(train, "batches", slow_batches)
    start = time.perf_counter()
    trainer.run_epoch()
    wall = time.perf_counter() - start
    assert 5 * 0.05 <= trainer.seconds <= wall - 6 * 0.2
    assert trainer.examples_per_second() == pytest.approx(3500 / trainer.seconds)


@pytest.mark.parametrize("batch_size", [500, 1000])
def test_compiled_steps_are_the_same_steps(subset, monkeypatch, batch_size):
    """Compiling leaves weights, gradients and the timer alone, and covers both batch sizes."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain = train.Trainer(train.TrainOptions(batch_size=batch_size), subset)
    compiled = train.Trainer(train.TrainOptions(batch_size=batch_size), subset)
    compiled.compile()
    assert compiled.seconds == 0
    assert all(p.grad is None for p in compiled.model.parameters())
    compiles = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiles > 0
    assert compiled.run_epoch() == plain.run_epoch()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiles


def test_evaluate_counts_and_keeps_the_mode(subset):
    model = LeNet()
    alone = Workers(torch.device("cpu"))
    loss, accuracy = train.evaluate(model.train(), subset.test, alone)
    assert model.training
    with torch.no_grad():
        scores = model(data.to_input(subset.test.images))
    expected = nn.functional.cross_entropy(scores, subset.test.labels)
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert accuracy == (scores.argmax(1) == subset.test.labels).sum().item() / 1000


def test_diverged_loss_is_an_error(subset):
    options = train.TrainOptions(model=MODERN, lr=1e6)
    with pytest.raises(train.DivergedError, match=r"the loss is nan in batch .* of epoch 1"):
        train.Trainer(options, subset).run_epoch()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of sgd, .*, got 'lion'"),
        ({"dtype": "int8"}, "dtype must be one of float32, .*, got 'int8'"),
        ({"autocast": "float64"}, "autocast must be one of none, bfloat16, float16"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": -0.1}, "lr must be at least 0, got -0.1"),
    ],
)
def test_train_options_refuse(options, message):
    with pytest.raises(ValueError, match=f"train: {message}"):
        train.TrainOptions(**options)


def test_too_few_classes(subset):
    with pytest.raises(ValueError, match="5 classes, but fashion-mnist-subset has 10"):
        train.Trainer(train.TrainOptions(model={"num_classes": 5}), subset)
