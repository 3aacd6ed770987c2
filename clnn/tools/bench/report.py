"""What came out: a table for people, JSON for programs, and a picture."""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from ...notebook import pyplot
from .run import Bench
from .workloads import PRODUCTS, QUICK_PRODUCTS

LARGE = 1_000_000  # multiply-adds from which a product is no longer tiny
COLUMNS = ("workload", "", "side", "minimum", "median", "GFLOP/s", "of peak", "clnn / other")


def header(bench: Bench) -> str:
    """The device, the libraries and the command."""
    from ... import __version__

    d = bench.device
    versions = ", ".join(f"{name} {version}" for name, version in bench.versions.items())
    lines = [
        f"{d['device']} ({d['platform']}, {d['version']}, driver {d['driver']}), {os.cpu_count()} CPUs",
        f"clnn {__version__}, matrix products by {d['gemm']}; Python {sys.version.split()[0]}{versions and '; ' + versions}",
        f"clnn {' '.join(sys.argv[1:])}",
    ]
    return "\n".join(lines)


def table(bench: Bench, markdown: bool = False) -> str:
    """A line for each side of each task; the last column is clnn's time over the other's: by minimum, by median, and the
    median over the rounds."""
    rows = [COLUMNS]
    before = ("", "")
    for row in bench.rows:
        place = (row["workload"], row["task"])
        first = place if place != before else ("", "")
        before = place
        note = ", ".join(part for part in (row.get("setting", ""), row["note"]) if part)
        side = row["side"] + (f" ({note})" if note and ("seconds" in row or "peak" in row) else "")
        if "seconds" in row:
            ratios = [row.get(f"ratio_{by}") for by in ("minimum", "median", "rounds")]
            rows.append((
                *first, side, time_of(row["minimum"]), time_of(row["median"]),
                f"{row['gflops']:.3g}" if "gflops" in row else "", _share(row),
                " / ".join(f"{r:.2f}" for r in ratios if r) if all(ratios) else "",
            ))  # fmt: skip
        elif "peak" in row:
            rows.append((*first, side, *_memory(row), "", "", ""))
        else:
            rows.append((*first, side, "no times:", row["note"], "", "", ""))
    return _markdown(rows) if markdown else _columns(rows)


def _memory(row: dict[str, Any]) -> tuple[str, str]:
    return (
        f"peak {row['peak'] / 1e6:.1f} MB",
        f"{row['peak'] / row['need']:.2f} x the {row['need'] / 1e6:.1f} MB needed",
    )


def _share(row: dict[str, Any]) -> str:
    """Of the multiply-adds, or of copying, whichever the task is nearer to."""
    arithmetic, copying = row.get("share_of_peak", 0.0), row.get("share_of_copy", 0.0)
    if not arithmetic and not copying:
        return ""
    return f"{copying:.0%} copy" if copying > arithmetic else f"{arithmetic:.0%}"


def time_of(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.5 else f"{seconds * 1e6:,.1f} us"


def _columns(rows: list[Any]) -> str:
    widths = [max(len(row[i]) for row in rows if row[3] != "no times:") for i in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if i >= 3 else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _markdown(rows: list[Any]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---|---|--:|--:|--:|--:|--:|", *lines[1:]])


# -- in a few sentences -----------------------------------------------------------------------------------------------
def summary(bench: Bench) -> list[str]:
    """What the rows say together: the device's peaks, and products beside the best of the others."""
    timed = [row for row in bench.rows if "copy_gbytes" in row]
    if not timed:
        return []
    peak = statistics.median(row["peak_gflops"] for row in timed)
    copy = statistics.median(row["copy_gbytes"] for row in timed)
    lines = [
        f"The device's peaks, measured in the same rounds: {peak:.0f} GFLOP/s in multiply-adds, {copy:.1f} GB/s copied."
    ]
    work = {p.name: p.work for p in (*PRODUCTS, *QUICK_PRODUCTS)}
    by_shape: dict[str, dict[str, float]] = {}
    for row in bench.rows:
        if row["workload"] == "gemm" and "median" in row:
            by_shape.setdefault(row["task"], {})[row["side"]] = row["median"]
    ratio: dict[bool, dict[str, float]] = {True: {}, False: {}}
    blast = []
    for shape, sides in by_shape.items():
        if "clnn" not in sides:
            continue
        rivals = [sides[name] for name in ("numpy", "torch") if name in sides]
        if rivals:
            ratio[work.get(shape, 0) > LARGE][shape] = sides["clnn"] / min(rivals)
        if "CLBlast" in sides:
            blast.append(sides["CLBlast"] / sides["clnn"])
    for large, what in ((True, "more"), (False, "fewer")):
        if found := ratio[large]:
            worst = max(found, key=lambda shape: found[shape])
            lines.append(
                f"Products of {what} than {LARGE:,} multiply-adds: clnn with its epilogue takes {mean(found.values()):.2f} of "
                f"the time of the better of the others without one (geometric mean of medians over {len(found)}); worst "
                f"{found[worst]:.2f} at {worst}."
            )
    if blast:
        lines.append(f"It is {mean(blast):.1f} times as fast as CLBlast as it comes ({min(blast):.1f} at least).")
    against: dict[str, dict[str, float]] = {}
    for row in bench.rows:
        if row["workload"] == "conv" and "ratio_median" in row:
            against.setdefault(row["side"], {})[row["task"]] = row["ratio_median"]
    for side, found in against.items():
        worst = max(found, key=lambda task: found[task])
        ways = {way: [r for task, r in found.items() if task.startswith(way)] for way in ("forward", "dx", "dw")}
        parts = ", ".join(f"{way} {mean(values):.2f}" for way, values in ways.items() if values)
        lines.append(
            f"Convolutions: clnn takes {mean(found.values()):.2f} of the time of {side} (geometric mean of medians over "
            f"{len(found)}; {parts}); worst {found[worst]:.2f} at {worst}."
        )
    return lines


def mean(values: Any) -> float:
    """The geometric mean."""
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


# -- files ------------------------------------------------------------------------------------------------------------
def as_json(bench: Bench) -> str:
    """Everything measured: seconds a round and side, and what was derived."""
    return json.dumps(
        {
            "device": bench.device, "cpus": os.cpu_count(), "versions": bench.versions, "command": sys.argv[1:],
            "rounds": bench.rounds, "rows": bench.rows, "notes": bench.notes, "summary": summary(bench),
        },
        indent=1,
    )  # fmt: skip


def plot(bench: Bench, path: Path) -> None:
    """Bars: how many times as long as clnn each other side takes."""
    plt = _pyplot("--plot")
    rows = [row for row in bench.rows if "median" in row]
    compared = [row for row in rows if "ratio_median" in row]
    labels = [f"{row['workload']} {row['task']}: {row['side']}" for row in compared or rows]
    values = [1 / row["ratio_median"] for row in compared] or [row.get("share_of_peak", 0.0) for row in rows]
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.22 * len(labels)))
    axis.barh(labels[::-1], values[::-1], color=["tab:blue" if v >= 1 else "tab:red" for v in values[::-1]])
    if compared:
        axis.set_xscale("log")
        axis.axvline(1, color="black", linewidth=1)
    axis.set_xlabel("times clnn's time (median)" if compared else "share of the device's multiply-adds")
    axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def picture(bench: Bench, path: Path) -> None:
    """Two panels, as README shows them: a training curve of README's first network, and what a training step takes on each
    side, in clnn's times, by the medians of interleaved rounds."""
    plt = _pyplot("--picture")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(2, 3))
    history = _first_network()
    epochs = range(1, len(history["loss"]) + 1)
    left.plot(epochs, history["loss"], color="tab:blue")
    left.set(xlabel="epoch", ylabel="loss (blue)", title="8 x 8 digits, 64-100-10", ylim=(0, None))
    beside = left.twinx()
    beside.plot(epochs, [100 * share for share in history["val_accuracy"]], color="tab:orange")
    beside.set(ylabel="test images right, % (orange)")
    rows = [row for row in bench.rows if row["task"] == "step" and "median" in row]
    place, ticks, names = 0.0, [], []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        mine = [row for row in rows if row["workload"] == workload]
        for row in sorted(mine, key=lambda row: row["side"] != "clnn"):
            ratio = 1 / row.get("ratio_median", 1.0)
            right.barh(place, ratio, color="tab:blue" if row["side"] == "clnn" else "lightgrey")
            right.text(ratio, place, f" {row['median'] * 1e6:,.0f} us", va="center", fontsize=7)
            ticks.append(place)
            names.append(f"{workload}: {row['side']}")
            place -= 1
        place -= 0.6
    right.set_yticks(ticks, names, fontsize=7)
    right.axvline(1, color="black", linewidth=0.8)
    right.set_xscale("log")
    right.set_xlim(0.5, 2 * right.get_xlim()[1])  # room for the times
    right.set(xlabel="times clnn's", title="a training step")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _first_network() -> dict[str, list[float]]:
    """The history of the network that README begins with."""
    from ...data import digits
    from ...layers import Dense
    from ...model import Sequential
    from ...optim import SGD

    (x, y), test = digits()
    net = Sequential([Dense(100, "sigmoid"), Dense(10)], input_shape=64, seed=1)
    return net.fit(
        x, y, loss="cross_entropy", optimizer=SGD(0.05, momentum=0.9), epochs=30, batch_size=10, validation=test, seed=1,
        progress=False,
    ).history  # fmt: skip


def _pyplot(option: str) -> Any:
    plt = pyplot(option)
    plt.switch_backend("Agg")
    return plt
