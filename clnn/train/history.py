"""What `fit` measured, epoch by epoch, and its curves."""

from __future__ import annotations

from typing import Any

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
        return self.history[name]

    def __repr__(self) -> str:
        last = ", ".join(f"{name} {values[-1]:.4g}" for name, values in self.history.items())
        return f"<History of {len(self.history.get('loss', []))} epochs: {last}>"

    def plot(self, path: str | None = None) -> Any:
        """Curves of loss and accuracy by epoch; saved to `path` if given. Needs matplotlib."""
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ConfigurationError("History.plot() needs matplotlib: pip install matplotlib") from error
        groups = [[n for n in self.history if n.endswith(part)] for part in ("loss", "accuracy")]
        groups = [names for names in groups if names]
        figure, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups), 3.5), squeeze=False)
        for axis, names in zip(axes[0], groups):
            for name in names:
                axis.plot(range(1, len(self.history[name]) + 1), self.history[name], label=name)
            axis.set_xlabel("epoch")
            axis.legend()
        figure.tight_layout()
        if path is not None:
            figure.savefig(path)
            plt.close(figure)
        return figure
