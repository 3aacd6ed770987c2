"""Callbacks: what fit calls as it goes, and the progress bar."""

from __future__ import annotations

from typing import Any


class Callback:
    """Override what you need. `model.stop_training = True` ends fit after the current epoch."""

    def on_train_begin(self, model: Any) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, model: Any, epoch: int) -> None:
        """Before epoch 0, 1, ..."""

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        """After an epoch, with its losses, accuracies, learning rate and seconds."""

    def on_train_end(self, model: Any) -> None:
        """After the last epoch, or an error."""


class Progress:
    """A progress bar over the steps of all epochs; none where the output is not a terminal."""

    def __init__(self, epochs: int, steps: int, shown: bool) -> None:
        self.bar: Any = None
        self.waiting = 0
        if shown:
            from tqdm import tqdm

            self.bar = tqdm(total=epochs * steps, unit="step", disable=None, dynamic_ncols=True, leave=True)
            if self.bar.disable:
                self.bar = None

    def step(self, times: int = 1) -> None:
        if self.bar is not None:
            self.waiting += times
            if self.waiting >= 64:
                self.bar.update(self.waiting)
                self.waiting = 0

    def epoch(self, epoch: int, epochs: int, logs: dict[str, float]) -> None:
        if self.bar is not None:
            self.bar.update(self.waiting)
            self.waiting = 0
            self.bar.set_description(f"epoch {epoch + 1}/{epochs}")
            self.bar.set_postfix_str(", ".join(f"{k} {v:.4g}" for k, v in logs.items() if k not in ("lr", "seconds")))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
