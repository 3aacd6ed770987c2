"""What `fit` measured, epoch by epoch, and its curves."""

from __future__ import annotations

from typing import Any

from .. import notebook
from ..errors import ConfigurationError


class History(dict[str, list[float]]):
    """What fit measured: a dict that maps names to lists with one value an epoch."""

    @property
    def history(self) -> dict[str, list[float]]:
        """The same dict, under the name by which Keras has it."""
        return self

    def add(self, logs: dict[str, float]) -> None:
        """An epoch more: its losses, metrics and the like, by name."""
        for name, value in logs.items():
            self.setdefault(name, []).append(value)

    def __missing__(self, name: str) -> list[float]:
        raise KeyError(f"{name}: only {', '.join(self) or 'nothing'} was measured")

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.items())
        return f"<History of {len(self.get('loss', []))} epochs: {last}>"

    _repr_html_ = notebook.of_history

    def plot(self, path: str | None = None) -> Any:
        """Curves of losses, accuracies and other metrics by epoch; saved to `path` if given. Needs matplotlib."""
        plt = notebook.pyplot("History.plot()")
        groups: dict[str, list[str]] = {}
        for name in [name for name in self if name not in ("lr", "seconds")]:
            kind = next((end for end in ("loss", "accuracy") if name.endswith(end)), name.removeprefix("val_"))
            groups.setdefault(kind, []).append(name)
        if not groups:
            raise ConfigurationError("History.plot(): nothing was measured yet")
        figure, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups), 3.5), squeeze=False)
        for axis, names in zip(axes[0], groups.values()):
            for name in names:
                axis.plot(range(1, len(self[name]) + 1), self[name], label=name)
            axis.set_xlabel("epoch")
            axis.legend()
        return notebook.finished(figure, path)
