"""A side's own process: reads a request a line from its parent, works, and answers a line; both are JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from .nets import Convolution, net_of
from .sequences import Task
from .workloads import Net, Product, reference_outputs

WARM = 0.2  # seconds of calls before they are counted
SOON = 0.05  # seconds that a round of products or inference takes at least


class Talk:
    """The line to the parent. What libraries print goes to stderr."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def ask(self) -> dict[str, Any]:
        """The next request; the process ends where there is none."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        return json.loads(line)

    def answer(self, **values: Any) -> None:
        print(json.dumps(values), file=self.out, flush=True)


def main(name: str, kind: str, options: dict[str, Any], began: float) -> None:
    """Run one side until the parent has no more requests; errors are answered as text."""
    talk = Talk()
    try:
        if name == "torch":
            import torch

            torch.set_num_threads(options["threads"])
            torch.set_num_interop_threads(1)
        KINDS[kind](talk, _side(name), options | {"began": began})
    except (KeyboardInterrupt, BrokenPipeError):
        raise SystemExit from None
    except Exception as error:
        with contextlib.suppress(OSError):
            talk.answer(failed=f"{type(error).__name__}: {error}")


def _side(name: str) -> Any:
    """clnn or a peer; only what is asked for is imported."""
    if name == "clnn":
        from .own import Clnn

        return Clnn()
    from .peers import PEERS

    return PEERS[name]


# -- what sides are asked for -----------------------------------------------------------------------------------------
class Rounds:
    """Called by a side after each epoch: answers when as many as asked for are over, and waits for the next request."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self._wait()

    def _wait(self) -> None:
        self.left = self.talk.ask()["epochs"]
        self.losses: list[float] = []
        self.began = time.perf_counter()

    def __call__(self, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) >= self.left:
            self.talk.answer(seconds=time.perf_counter() - self.began, count=self.left, losses=self.losses)
            self._wait()


class Next(Exception):
    """Ends a check."""


def train(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    """Train the net for ever; before that, an epoch of the net to check it by, if there is one."""
    if "check" in options:

        def after(loss: float) -> None:
            talk.answer(losses=[loss])
            raise Next

        talk.ask()
        with contextlib.suppress(Next):
            side.train(net_of(options["check"]), options, after)
    side.train(net_of(options["net"]), options, Rounds(talk))


def first_step(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    """The seconds from before the imports to the end of the first step (an epoch of it has one), and the time then."""

    def after(loss: float) -> None:
        now = time.time()
        talk.answer(seconds=now - options["began"], ended=now, losses=[loss])
        talk.ask()

    side.train(net_of(options["net"]), options, after)


def products(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    def task(values: list[Any]) -> tuple[Any, Any]:
        p = Product(*values)
        run, result = side.product(p)
        run(1)
        return run, lambda: p.error(*result())

    calls(talk, task)


def convolutions(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    def task(values: list[Any]) -> tuple[Any, Any]:
        c = Convolution.of(values)
        run, result = side.convolution(c, options["form"])
        run(1)
        return run, lambda: c.error(*result())

    calls(talk, task)


def sequences(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    def task(values: list[Any]) -> tuple[Any, Any]:
        one = Task(values[0], tuple(values[1]))
        run, result = side.sequence(one)
        run(3)  # what is recorded or compiled at a later call is by then
        return run, lambda: one.error(result())

    calls(talk, task)


def inference(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    def task(values: list[Any]) -> tuple[Any, Any]:
        net, form = Net.of(values), options["form"]
        run, result = side.compiled(net, form) if form in ("compiled", "halves") else side.outputs(net)

        def error() -> float:
            want = reference_outputs(net)
            return float(abs(result() - want).max() / abs(want).max())

        return run, error

    calls(talk, task)


def optimizer(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    def task(values: list[Any]) -> tuple[Any, Any]:
        run, result = side.optimizer(*values)
        run(1)
        return run, lambda: float(abs(result()).max())  # of zeros, with gradients of zero

    calls(talk, task)


def calls(talk: Talk, task: Callable[[Any], tuple[Any, Any]]) -> None:
    """Serve {"open": task}, answered with the error of its results, and {"count": n}: n calls, timed. With n = 0 it
    runs as many as take long enough, and says how many those are."""
    run: Any = None
    while True:
        asked = talk.ask()
        if "open" in asked:
            run = error = None  # the memory of the last task goes first
            run, error = task(asked["open"])
            talk.answer(error=error())
            continue
        least, began = getattr(run, "at_once", 1), time.perf_counter()
        while not asked["count"] and time.perf_counter() - began < WARM:  # the first calls compile and record
            run(least)
        count, enough = (asked["count"], 0.0) if asked["count"] else (least, SOON / 2)
        while True:
            began = time.perf_counter()
            run(count)
            seconds = time.perf_counter() - began
            if seconds >= enough:
                break
            count *= max(2, min(8, int(SOON / max(seconds, 1e-7))))
        talk.answer(seconds=seconds, count=count)


def device(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    """The device's name, and its peaks as often as asked."""
    from ...runtime.devices.choice import device as in_use
    from ...runtime.profile.peaks import Peaks
    from .own import about

    peaks = Peaks(in_use())
    talk.answer(**about())
    while talk.ask():
        talk.answer(**peaks.measure())


def memory(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    talk.answer(peak=side.memory(net_of(options["net"]), options["form"]))


def profile(talk: Talk, side: Any, options: dict[str, Any]) -> None:
    from .own import profile

    what = Product(*options["what"]) if options["of"] == "product" else net_of(options["what"])
    found = profile(options["of"], what)
    launches = [{"launch": r.launch, "size": r.size, "seconds": r.minimum, "runs": r.runs} for r in found.rows]
    talk.answer(launches=launches, table=found.table())


KINDS: dict[str, Callable[[Talk, Any, dict[str, Any]], None]] = {
    "train": train,
    "first-step": first_step,
    "products": products,
    "convolutions": convolutions,
    "inference": inference,
    "sequences": sequences,
    "optimizer": optimizer,
    "device": device,
    "memory": memory,
    "profile": profile,
}
