"""What `fit` says as it goes: a bar in terminals and notebooks, elsewhere a line an epoch, and lines to `logging`."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

MOST_LINES = 100  # of a fit, where there is no bar
SOON = 1.0  # seconds of a first step after which it is said that kernels are compiled
log = logging.getLogger("clnn")


def in_notebook() -> bool:
    """Whether this runs in Jupyter's kernel, whose output is no terminal and can show a bar."""
    ipython: Any = sys.modules.get("IPython")
    return "IPKernelApp" in getattr(ipython and ipython.get_ipython(), "config", {})


class Progress:
    """The steps of all epochs: a bar, or lines to stderr, unless `logging` handles the level INFO of the logger "clnn".

    With more than 100 epochs a line is that of one in so many. `device`: of whose kernels it is said that they are compiled,
    where the first step takes longer than a second for it.
    """

    def __init__(self, epochs: int, steps: int, shown: bool, device: Any = None) -> None:
        self.bar: Any = None
        self.waiting = 0
        self.every, self.unsaid, self.shown = -(-epochs // MOST_LINES), "", shown
        self.stepped = threading.Event()
        if shown and sys.stderr is not None:  # which programs without a console go without
            notebook = in_notebook()
            if notebook:
                from tqdm.auto import tqdm
            else:
                from tqdm import tqdm
            disable = False if notebook else None
            self.bar = tqdm(total=epochs * steps, unit="step", disable=disable, dynamic_ncols=True, leave=True)
            if self.bar.disable:
                self.bar = None
        if device is not None and (shown or log.isEnabledFor(logging.INFO)):
            threading.Thread(target=self._watch, args=(device, device.programs.begun), daemon=True).start()

    def _watch(self, device: Any, before: int) -> None:
        """Until the first step is over: say that kernels are compiled, once they are."""
        while not self.stepped.wait(SOON):
            if device.programs.begun > before:
                if self.bar is not None:
                    self.bar.set_description("compiling")
                self._say(f"compiling kernels for {device.name}, which its driver may keep for the next time")
                return

    def _say(self, line: str) -> None:
        log.info(line)
        heard = log.isEnabledFor(logging.INFO) and log.hasHandlers()
        if self.shown and self.bar is None and not heard and sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)

    def step(self, times: int = 1) -> None:
        """Steps were taken."""
        self.stepped.set()
        if self.bar is not None:
            self.waiting += times
            if self.waiting >= 64:
                self.bar.update(self.waiting)
                self.waiting = 0

    def epoch(self, epoch: int, epochs: int, logs: dict[str, float]) -> None:
        """An epoch has ended, with these logs."""
        if self.bar is None and not self.shown and not log.isEnabledFor(logging.INFO):
            return
        told = ", ".join(f"{k} {v:.4g}" for k, v in logs.items() if k not in ("lr", "seconds"))
        if self.bar is not None:
            self.bar.update(self.waiting)
            self.waiting = 0
            self.bar.set_description(f"epoch {epoch + 1}/{epochs}")
            self.bar.set_postfix_str(told)
        self.unsaid = f"epoch {epoch + 1}/{epochs}: {told} ({logs['seconds']:.3g} s)"
        if (epoch + 1) % self.every == 0:
            self._say(self.unsaid)
            self.unsaid = ""

    def close(self) -> None:
        """Fit is over: say the last epoch, and take the bar away."""
        self.stepped.set()
        if self.unsaid:
            self._say(self.unsaid)
        if self.bar is not None:
            self.bar.close()
