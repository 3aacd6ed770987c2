"""`clnn warm`: compile ahead what a workload or a saved model needs, which drivers keep, and say what took how long."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..errors import ConfigurationError
from ..files import as_path, why_no_file
from ..model import Model, load
from ..runtime import program
from ..runtime.devices.choice import device
from .bench import nets
from .bench.own import train_epochs

DEFAULT = ("nielsen", "mlp")
STEPS = 6  # of a workload: the third is recorded, the fourth replayed, and the fifth fused with CLNN_FUSE=always


def warm(names: Sequence[str]) -> int:
    """Run the first steps of workloads of `clnn bench`, or predictions of models in files, and print what compiling took, by
    program. ConfigurationError for a name that is neither."""
    for name in [one for one in names if one not in nets.ALL]:
        of_onnx = f"clnn run {name} uses an ONNX file once" if name.endswith(".onnx") else ""
        if why := why_no_file(as_path(name)) or of_onnx:
            raise ConfigurationError(
                f"{name!r} is neither a file of net.save ({why}) nor one of the workloads {', '.join(sorted(nets.ALL))}"
            )
    began = time.perf_counter()
    device().context  # noqa: B018
    print(f"opening the device: {time.perf_counter() - began:.1f} s, with its self-test if that is due")
    for name in names or DEFAULT:
        began = time.perf_counter()
        with _noted() as builds:
            if name in nets.ALL:
                train_epochs(nets.ALL[name]._replace(steps=STEPS), 1)
            else:
                _answer(load(name))
        spent, building = time.perf_counter() - began, sum(seconds for _, seconds in builds)
        print(f"{name}: {spent:.1f} s, of which {len(builds)} programs {building:.1f} s")
        for what, seconds in sorted(builds, key=lambda one: -one[1]):
            print(f"  {seconds:6.2f} s  {what}")
    return 0


def _answer(model: Model) -> None:
    """One sample and a batch, by all ways to a prediction."""
    f = model.compiled()
    zeros = [np.zeros(shape, dtype) for shape, dtype in f.forms]
    f(*zeros)
    for rows in (1, 16):
        model.reset_states(rows)
        x = tuple(np.repeat(one, rows, axis=0) for one in zeros)
        for _ in range(STEPS):
            model.predict(x if len(x) > 1 else x[0])


@contextmanager
def _noted() -> Iterator[list[tuple[str, float]]]:
    """What is built within it, and the seconds of each. (Some drivers, PoCL too, make machine code only when a kernel first
    runs.)"""
    builds: list[tuple[str, float]] = []

    def note(what: str, seconds: float | None) -> None:
        if seconds is not None:
            builds.append((what, seconds))

    program.listening.append(note)
    try:
        yield builds
    finally:
        program.listening.remove(note)
