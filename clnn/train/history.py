"""What `fit` measured, epoch by epoch, and its curves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .. import notebook
from ..errors import ConfigurationError


class History:
    """What fit measured: `history` maps names to lists with one value an epoch."""

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def add(self, logs: dict[str, float]) -> None:
        """An epoch more: its losses, metrics and the like, by name."""
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> list[float]:
        if name not in self.history:
            raise KeyError(f"{name}: only {', '.join(self.history) or 'nothing'} was measured")
        return self.history[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.history)

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items())
        return f"<History of {len(self.history.get('loss', []))} epochs: {last}>"

    _repr_html_ = notebook.of_history

    def plot(self, path: str | None = None) -> Any:
        """Curves of losses, accuracies and other metrics by epoch; saved to `path` if given. Needs matplotlib."""
        plt = notebook.pyplot("History.plot()")
        groups: dict[str, list[str]] = {}
        for name in [name for name in self.history if name not in ("lr", "seconds")]:
            kind = next((end for end in ("loss", "accuracy") if name.endswith(end)), name.removeprefix("val_"))
            groups.setdefault(kind, []).append(name)
        if not groups:
            raise ConfigurationError("History.plot(): nothing was measured yet")
        figure, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups), 3.5), squeeze=False)
        for axis, names in zip(axes[0], groups.values()):
            for name in names:
                axis.plot(range(1, len(self.history[name]) + 1), self.history[name], label=name)
            axis.set_xlabel("epoch")
            axis.legend()
        return notebook.finished(figure, path)
