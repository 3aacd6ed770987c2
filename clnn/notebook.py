"""What notebooks show of clnn's objects, as HTML with every text escaped, and Matplotlib where it is installed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from .errors import ConfigurationError

STYLE = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"


def pyplot(who: str) -> Any:
    """matplotlib.pyplot. ConfigurationError without Matplotlib, where `who` says what needs it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ConfigurationError(f"{who} needs matplotlib: pip install matplotlib") from error
    return plt


def check_picture(who: str, path: str | os.PathLike[str]) -> None:
    """ConfigurationError without Matplotlib, and for a file whose ending says a format that it does not draw."""
    known = pyplot(who).matplotlib.backend_bases.FigureCanvasBase.get_supported_filetypes()
    if (ending := os.path.splitext(path)[1][1:].lower()) and ending not in known:
        told = f"{who}: Matplotlib draws no .{ending}: give a file that ends in one of {', '.join(sorted(known))}"
        raise ConfigurationError(told)


def finished(figure: Any, path: str | os.PathLike[str] | None) -> Any:
    """The figure, laid out; where a path is given it is saved there, and closed."""
    figure.tight_layout()
    if path is not None:
        figure.savefig(path)
        pyplot("a figure").close(figure)
    return figure


class Html(str):
    """Text that is HTML already."""


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], below: str = "") -> str:
    """A table as HTML, with a line above and below it."""

    def cell(kind: str, text: Any) -> str:
        return f'<{kind} style="{STYLE}">{text if isinstance(text, Html) else escape(str(text))}</{kind}>'

    lines = [("th", header)] * bool(header) + [("td", row) for row in rows]
    body = "".join(f"<tr>{''.join(cell(kind, text) for text in row)}</tr>" for kind, row in lines)
    foot = f"<div>{escape(below)}</div>" if below else ""
    return f"<div><strong>{escape(title)}</strong><table>{body}</table>{foot}</div>"


def text(title: str, inside: str) -> str:
    """Text as it stands, as HTML."""
    return f"<div><strong>{escape(title)}</strong><pre>{escape(inside)}</pre></div>"


def curve(values: Sequence[float], width: int = 140, height: int = 24) -> Html:
    """Values as a line, one beside the other; those that are not finite are left out."""
    points = [(i, float(v)) for i, v in enumerate(values) if math.isfinite(v)]
    low, high = min((v for _, v in points), default=0.0), max((v for _, v in points), default=0.0)
    across, up = (width - 4) / max(1, len(values) - 1), (height - 4) / (high - low or 1)
    line = " ".join(f"{2 + i * across:.1f},{height - 2 - (v - low) * up:.1f}" for i, v in points)
    return Html(
        f'<svg width="{width}" height="{height}" role="img" aria-label="from {values[0] if values else 0:.4g} to '
        f'{values[-1] if values else 0:.4g}"><polyline points="{line}" fill="none" stroke="#e4572e" stroke-width="1.5"/></svg>'
    )


def of_tensor(t: Any) -> str:
    """A tensor: what it is, and its values, of large ones the corners."""
    title = f"{type(t).__name__} {t.shape}, {t.dtype}, on {t.device.name}"
    if t.device.recorder is not None:  # its values are not there yet
        return text(title, "...")
    with np.printoptions(threshold=200, precision=4):
        return text(title, np.array2string(t.numpy(), separator=", "))


def of_device(d: Any) -> str:
    """A device: what it is and can do."""
    rows = {
        "platform": f"{d.platform}, {d.version.split('  ')[0]}",
        "driver": d.driver,
        "memory": f"{d.global_memory / 2**30:.1f} GiB{', the host' + chr(39) + 's' if d.unified else ''}",
        "compute units": f"{d.compute_units} at {d.clock_mhz} MHz",
        "float64, float16": f"{'yes' if d.has_fp64 else 'no'}, {'yes' if d.has_fp16 else 'no'}",
    }
    return table(f"Device {d.platform_index}:{d.device_index}, {d.kind}, {d.name}", (), rows.items())


def of_history(h: Any) -> str:
    """A history: of each value the curve, the first, the least, the largest and the last."""
    rows = []
    for name, values in h.history.items():
        finite = [v for v in values if math.isfinite(v)] or [math.nan]
        rows.append((name, curve(values), *(f"{v:.4g}" for v in (values[0], min(finite), max(finite), values[-1]))))
    epochs = max(map(len, h.history.values()), default=0)
    return table(f"History of {epochs} epochs", ("", "", "first", "least", "largest", "last"), rows)
