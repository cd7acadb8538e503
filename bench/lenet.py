"""Time LeNet's training step and inference against torch.nn: ``python -m bench.lenet``.

A step is what the book's train_ch6 puts under its timer: zero_grad, forward, loss, backward, SGD
step, and the running loss and accuracy. Random images of Fashion-MNIST's size, batch 256.
"""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from bench.results import Report, parser
from bench.timing import WrongOutputError, alternate, check_same
from cnnkern.lenet import LeNet

COLUMNS = {
    "name": "name",
    "pass": "pass",
    "dtype": "dtype",
    "activation": "activation",
    "pool": "pool",
    "ours_us": "ours us",
    "spread": "10-90 %",
    "torch_us": "torch.nn",
    "torch_nhwc_us": "torch.nn nhwc",
    "torch_compile_us": "torch.compile",
    "onnxruntime_us": "onnxruntime",
    "openvino_us": "openvino",
    "images": "images/s",
    "ratio_best": "best torch",
}
TORCH = ("torch", "torch_nhwc", "torch_compile")
BATCH = 256


def networks(activation: str, pool: str) -> tuple[nn.Module, nn.Module]:
    """Build ours, and the book's with torch.nn and the same weights."""
    mine = LeNet(activation=activation, pool=pool)
    act = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}[activation]
    window = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}[pool]
    book = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), act(), window(2, 2)),
        *(nn.Conv2d(6, 16, 5), act(), window(2, 2)),
        nn.Flatten(),
        *(nn.Linear(400, 120), act(), nn.Linear(120, 84), act(), nn.Linear(84, 10)),
    )
    with torch.no_grad():
        for theirs, our in zip(book.parameters(), mine.parameters(), strict=True):
            theirs.copy_(our)
    return mine, book


def graphed(call: Callable) -> Callable:
    """Capture a call in a CUDA graph, and give the call that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay():
        graph.replay()
        return result

    return replay


def training_step(
    net: nn.Module, images: Tensor, labels: Tensor, graph: bool = False
) -> Callable[[], Tensor]:
    """Give a call that takes one step of the book's training and returns the step's scores."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss_of = nn.CrossEntropyLoss()
    sums = [0.0, 0.0, 0]

    def learn() -> tuple[Tensor, Tensor]:
        optimizer.zero_grad()
        scores = net(images)
        loss = loss_of(scores, labels)
        loss.backward()
        optimizer.step()
        return scores, loss

    learn = graphed(learn) if graph else learn

    def step() -> Tensor:
        scores, loss = learn()
        with torch.no_grad():
            sums[0] += float(loss * len(labels))
            sums[1] += float((scores.argmax(1) == labels).sum())
            sums[2] += len(labels)
        return scores.detach()

    return step


def onnxruntime_call(book: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """Give ONNX Runtime's call, with torch's number of threads or one, whichever is faster.

    One image has too little work for two threads, and the second one of a session waits for it
    spinning, on a core that the next candidate wants.
    """
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(book, (images,), file, dynamo=False, input_names=["images"])
    feed = {"images": images.numpy()}

    def call_with(threads: int) -> Callable[[], Tensor]:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            file.getvalue(), settings, providers=["CPUExecutionProvider"]
        )
        return lambda: torch.from_numpy(session.run(None, feed)[0])

    threads = (1, torch.get_num_threads())
    seconds = {n: alternate({"": call_with(n)}, 0.3)[""].median for n in threads}
    return call_with(min(seconds, key=seconds.get))


def peers(book: nn.Module, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Give the same network in the inference engines that are installed."""
    found: dict[str, Callable[[], Tensor]] = {}
    threads = torch.get_num_threads()
    if images.device.type != "cpu" or not any(map(find_spec, ("onnxruntime", "openvino"))):
        return found
    if find_spec("onnxruntime") and find_spec("onnx"):
        found["onnxruntime"] = onnxruntime_call(book, images)
    if find_spec("openvino"):
        import openvino

        model = openvino.convert_model(book, example_input=images)
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the machine has it
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
        array = images.numpy()
        found["openvino"] = lambda: torch.from_numpy(request.infer([array], share_inputs=True)[0])
    return found


def candidates(
    args, activation: str, pool: str, which: str, batch: int
) -> dict[str, Callable[[], Tensor]]:
    """Give every network's call for one row; each has its own copy of the same weights."""
    torch.manual_seed(0)
    mine, book = (net.to(args.device) for net in networks(activation, pool))
    images = torch.rand(batch, 1, 28, 28, device=args.device)
    labels = torch.randint(10, (batch,), device=args.device)
    nets: dict[str, Callable[[Tensor], Tensor]] = {"torch": book, "ours": mine}
    nets["torch_nhwc"] = copy.deepcopy(book).to(memory_format=torch.channels_last)
    if args.compile:
        nets["torch_compile"] = torch.compile(copy.deepcopy(book))
        nets["ours_compile"] = torch.compile(copy.deepcopy(mine))
    if which == "train":
        return {name: training_step(net, images, labels, args.graph) for name, net in nets.items()}
    made = {name: partial(net, images) for name, net in nets.items()}
    if args.graph:
        return {name: graphed(call) for name, call in made.items()}
    return made | peers(book.eval(), images)


def measure(report: Report, activation: str, pool: str, which: str, batch: int) -> None:
    """Time one row: every network takes turns, once all agree on the scores.

    Inference is all in one inference_mode, as in a server.
    """
    title = f"lenet N={batch}"
    chosen = candidates(report.options, activation, pool, which, batch)
    try:
        # Two steps, so that the first one's gradients are compared as well.
        for _ in range(2):
            want = chosen["torch"]()
            for name, call in chosen.items():
                if name != "torch":
                    check_same(f"{title} {which} {activation} {pool}: {name}", call(), want, 1e-3)
    except (RuntimeError, WrongOutputError) as error:
        report.fail(f"{title} {which}", error)
        return
    samples = alternate(chosen, 3 * report.budget, report.options.device)
    ours = samples["ours"].median
    best = min(samples[name].median for name in TORCH if name in samples)
    report.add(
        title,
        samples,
        **{"pass": which},
        dtype="float32",
        activation=activation,
        pool=pool,
        images=round(batch / ours),
        ratio_same=samples["torch"].median / ours,
        ratio_best=best / ours,
    )


def main() -> int:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--compile", action="store_true", help="also time torch.compile")
    options.add_argument("--graph", action="store_true", help="replay CUDA graphs of all networks")
    args = options.parse_args()
    if args.graph and args.device != "cuda":
        options.error("--graph needs --device cuda")
    report = Report("lenet-graph" if args.graph else "lenet", args)
    for activation, pool in (("sigmoid", "avg"), ("relu", "max")):
        for which, batch in (("train", BATCH), ("infer", BATCH), ("infer", 1)):
            if f"lenet N={batch} {which} {activation}".startswith(args.only):
                with torch.inference_mode(which == "infer"):
                    measure(report, activation, pool, which, batch)
    return report.finish(COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
