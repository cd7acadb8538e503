"""Write the README's tables, and a bar chart, from bench/results/*.csv: ``python -m bench.chart``.

Nothing is measured here. A row of the table sums up one pass in one layout on one machine; the
chart, bench/results/ratios.svg, shows every problem. With --cudnn it draws what bench.cudnn found.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

from bench import gpu_claims, memory
from bench.results import RESULTS, read
from bench.timing import geometric_mean

README = Path(__file__).parent.parent / "README.md"
PASSES = {
    "fwd": "forward",
    "dgrad": "input gradient",
    "wgrad": "weight gradient",
    "train": "forward, training",
    "bwd": "backward",
    "step": "forward and backward",
}
SUBJECTS = {"conv2d": "Convolution", "pool2d": "Pooling", "lenet": "LeNet"}
Rows = list[dict[str, str]]


def load() -> Rows:
    """Read all rows, those of one machine together; first those of the machine with the most."""
    rows = [row for path in sorted(RESULTS.glob("*.csv")) for row in read(path)]
    rows = [row for row in rows if row.get("subject") in SUBJECTS and row.get("ratio_best")]
    counts = Counter(row["device"] for row in rows)
    return sorted(rows, key=lambda row: -counts[row["device"]])


def setting(row: dict[str, str]) -> tuple[str, ...]:
    """Give what a row was measured with."""
    return row["device"], row["isa"], row["threads"], row["torch"], row["dtype"]


def settings(rows: Rows) -> list[Rows]:
    """Group rows by what they were measured with; first what has the table of LeNet, its peers."""
    groups: dict[tuple[str, ...], Rows] = defaultdict(list)
    for row in rows:
        groups[setting(row)].append(row)
    return sorted(groups.values(), key=lambda group: group[0]["subject"] != "lenet")


def tables(rows: Rows) -> str:
    """Give the Markdown between the README's markers: the first machine's in full."""
    machines: dict[str, Rows] = defaultdict(list)
    for row in rows:
        machines[row["device"]].append(row)
    parts = []
    for machine in machines.values():
        groups = settings(sorted(machine, key=lambda r: r["subject"] != "lenet"))
        lenet = [r for r in groups[0] if r["subject"] == "lenet"]
        groups[0] = [r for r in groups[0] if r["subject"] != "lenet"]
        parts += [_peaks(groups[0] or lenet), _lenet_table(lenet)]
        if machine is machines[rows[0]["device"]]:
            parts += [_summary_table(groups[0]), _settings_table(groups[1:])]
        else:
            parts.append(_settings_table(groups))
    return "\n\n".join(filter(None, [*parts, _memory_table()]))


def _peaks(rows: Rows) -> str:
    row = rows[0]
    flops, bandwidth = (max(float(r[peak]) for r in rows) for peak in ("peak_gflops", "peak_gbs"))
    return (
        f"{row['device']}, {row['threads']} threads, {row['isa']}, torch {row['torch']}: "
        f"{flops:.0f} GFLOP/s of fused multiply-adds, copies at {bandwidth:.1f} GB/s, measured."
    )


def _memory_table() -> str:
    """Give the table of bench.memory, which does not depend on the machine."""
    rows = read(memory.FILE)
    header = ["MiB that a training step adds", "layout", *memory.PACKAGES]
    body = [
        [f"{r['name']}, batch {r['batch']}", r["layout"].upper(), *(r[p] for p in memory.PACKAGES)]
        for r in rows
    ]
    return _markdown(header, body) if body else ""


def _lenet_table(rows: Rows) -> str:
    if not rows:
        return ""
    others = {
        "torch_us": "torch.nn",
        "torch_nhwc_us": "torch.nn, channels_last",
        "torch_compile_us": "torch.compile",
        "onnxruntime_us": "ONNX Runtime",
        "openvino_us": "OpenVINO",
    }
    others = {k: v for k, v in others.items() if any(r.get(k) for r in rows)}
    header = ["LeNet", "cnnkern", *others.values(), "against the best torch"]
    body = [
        [
            _lenet_title(r),
            *(_time(r.get(k)) for k in ("ours_us", *others)),
            f"{float(r['ratio_best']):.2f}x",
        ]
        for r in rows
    ]
    return _markdown(header, body)


def _lenet_title(row: dict[str, str]) -> str:
    work = {"train": "training step", "infer": "inference"}[row["pass"]]
    batch = row["name"].removeprefix("lenet N=")
    return f"{work}, batch {batch}, {row['activation']}, {row['pool']} pool"


def _ratios(rows: Rows, ratio: str = "ratio_best") -> dict[tuple[str, ...], list[float]]:
    """Collect the ratios of each op, pass and layout."""
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for r in rows:
        groups[r["subject"], r["pass"], r["layout"]].append(float(r[ratio]))
    return groups


def _pass_title(key: tuple[str, ...]) -> list[str]:
    subject, which, layout = key
    return [f"{SUBJECTS[subject]}, {PASSES[which]}", layout.upper()]


def _summary_table(rows: Rows) -> str:
    if not rows:
        return ""
    same = _ratios(rows, "ratio_same")
    header = [rows[0]["dtype"], "layout", "same layout", "best layout", "range", "faster in"]
    body = [
        [
            *_pass_title(key),
            f"{geometric_mean(same[key]):.2f}x",
            f"{geometric_mean(ratios):.2f}x",
            f"{min(ratios):.2f}-{max(ratios):.2f}x",
            f"{sum(r >= 1 for r in ratios)} of {len(ratios)}",
        ]
        for key, ratios in _ratios(rows).items()
    ]
    return _markdown(header, body)


def _settings_table(groups: list[Rows]) -> str:
    """Give the geometric means of the same problems by type, instruction set and threads."""
    groups = [rows for rows in groups if rows]
    if not groups:
        return ""
    columns = {}
    for rows in groups:
        threads = f"{rows[0]['threads']} thread{'s' * (rows[0]['threads'] != '1')}"
        columns[f"{rows[0]['dtype']}, {rows[0]['isa']}, {threads}"] = _ratios(rows)
    keys = list(dict.fromkeys(key for ratios in columns.values() for key in ratios))
    body = [
        [
            *_pass_title(key),
            *(f"{geometric_mean(r[key]):.2f}x" if key in r else "" for r in columns.values()),
        ]
        for key in keys
    ]
    return _markdown(["geometric mean", "layout", *columns], body)


def _time(microseconds: str | None) -> str:
    if not microseconds:
        return ""
    value = float(microseconds)
    return f"{value / 1000:.2f} ms" if value >= 1000 else f"{value:.0f} us"


def _markdown(header: list[str], body: list[list[str]]) -> str:
    left = [True] + [all(not row[i][:1].isdigit() for row in body) for i in range(1, len(header))]
    rule = ["---" if is_left else "---:" for is_left in left]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *body])


def torch_panels(rows: Rows) -> dict[str, Rows]:
    """Group what is drawn against torch on a CPU: a panel a pass, in one setting."""
    panels: dict[str, Rows] = defaultdict(list)
    for row in settings(rows)[0]:
        if row["subject"] != "lenet":
            panels[f"{SUBJECTS[row['subject']]}, {PASSES[row['pass']]}"].append(row)
    return panels


def cudnn_panels(rows: Rows) -> dict[str, Rows]:
    """Group what is drawn against cuDNN: what a plain call takes, a panel a pass and type."""
    panels: dict[str, Rows] = defaultdict(list)
    for row in rows:
        if row["algo"] in ("auto", "cuda"):  # of convolutions, of pools
            panels[f"{PASSES[row['pass']]}, {row['dtype']}"].append(row)
    return panels


def chart(panels: dict[str, Rows], peer: str, path: Path) -> None:
    """Draw every problem's ratio to the best of its peer, ours faster to the right."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "cnnkern"  # the same numbers give the same file
    from matplotlib import pyplot as plt

    tallest = max(len({r["name"] for r in group}) for group in panels.values())
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 1 + 0.24 * tallest), squeeze=False
    )
    for axis, (title, group) in zip(axes[0], panels.items(), strict=True):
        names = list(dict.fromkeys(r["name"] for r in group))[::-1]
        for offset, layout, colour in ((0.2, "nchw", "#3b6ea8"), (-0.2, "nhwc", "#d98a3d")):
            chosen = [r for r in group if r["layout"] == layout]
            axis.barh(
                [names.index(r["name"]) + offset for r in chosen],
                [float(r["ratio_best"]) - 1 for r in chosen],
                0.38,
                left=1,
                color=colour,
                label=layout.upper(),
            )
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        axis.set_title(title, fontsize=9)
    axes[0][0].legend(fontsize=7)
    figure.supxlabel(f"speed against the best of {peer} NCHW and channels_last", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def fill(text: str, content: str, name: str = "results") -> str:
    """Put the content between the markers of this name.

    Raises:
        ValueError: the text has no markers.
    """
    first, last = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the README has no '{first}' and '{last}'")
    return f"{before}{first}\n{content}\n{last}{after}"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--svg", action="store_true", help="draw the chart too (matplotlib)")
    options.add_argument("--check", action="store_true", help="fail if the README is out of date")
    options.add_argument("--cudnn", type=Path, help="draw this CSV of bench.cudnn, beside it")
    args = options.parse_args()
    if args.cudnn:
        chart(cudnn_panels(read(args.cudnn)), "cuDNN", args.cudnn.with_suffix(".svg"))
        return 0
    rows = load()
    if not rows:
        print(f"no results in {RESULTS}: run python -m bench.conv2d --csv first", file=sys.stderr)
        return 1
    text = README.read_text()
    new = fill(text, tables(rows))
    new = fill(new, gpu_claims.table(_markdown), "gpu counts")
    if args.check:
        return int(new != text)
    README.write_text(new)
    if args.svg:
        chart(torch_panels(rows), "torch", RESULTS / "ratios.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
