"""Training on several devices or machines: ranks that share out each mini-batch and add up their gradients, by MPI.

    world = clnn.distributed.init()  # mpirun -n 2 python script.py, or clnn run-mpi -n 2 script.py
    net.fit(x, y, loss="cross_entropy", optimizer=clnn.Adam(0.001), batch_size=64, world=world)
    world.save(net, "net.safetensors")

Every rank is a process that runs the whole program, with all samples. mpi4py does the transport (`pip install mpi4py mpich`).
Before anything is exchanged, all ranks say what they are about to exchange: one that does something else, fails or does not
come is an error on the others, which names it. A world of one does nothing of all that.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pyopencl as cl

from . import random
from .checks import in_range
from .errors import ConfigurationError, DistributedError
from .foreign import tell
from .gemm import Scale
from .layers.base import Layer, register
from .layers.norm import BatchNorm
from .ops.array import Array, Backward, empty, empty_like, fill
from .ops.elementwise import scale_add
from .parameters import runs
from .runtime.device import Device
from .runtime.devices.choice import device, devices, use
from .tensor import Parameter, Tensor, apply, concat, function
from .train.alone import Alone

__all__ = ["SyncBatchNorm", "World", "current", "init"]

T = TypeVar("T")
LAUNCHED = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PALS_SIZE")  # set by launchers: how many ranks
PIECE = 1 << 24  # bytes of an Allreduce: smaller ones are slower (measured)
MOST_HASHED = 1 << 26  # bytes of an array of samples that are compared between ranks
# What ranks can be about to do: in words, with the numbers that have to be the same on all
FAILED, ENDED, COMBINE, SUM, SHARE, GATHER, FIRST, WEIGHTS, WAIT = range(9)
DOING = (
    "has failed",
    "has ended its program",
    "adds up {0:,} gradients of {1} bytes, mean={2}",
    "adds up {0:,} values of {1} bytes",
    "adds up how many targets count",
    "tells the others something",
    "is told what rank 0 has",
    "is given {0:,} weights by rank 0",
    "waits for the others",
)
RECORD = np.dtype([("kind", "i8"), ("same", "i8", 3), ("length", "i8"), ("interrupted", "i8")])
SPIN = 0.002  # seconds that a rank waits for the others awake
FAREWELL = 5.0  # seconds that a program which ends by an error gives the others to print theirs

_world: World | None = None


def init(timeout: float = 60.0, comm: Any = None) -> World:
    """The world of this process: the ranks that `mpirun` has started, or one alone. Call it first of all, on every rank.

    The ranks of a machine take its devices in turns: those that are like the one in use (CLNN_DEVICE), or that one alone where
    CLNN_DEVICE has a colon, such as gpu:1. `timeout`: seconds that a rank waits for the others, once it has something to exchange
    with them, before that is an error. `comm`: a communicator of mpi4py (COMM_WORLD). An exception that a program of several
    ranks does not catch ends all of them. ConfigurationError where mpirun has started several ranks and mpi4py does not see them.
    """
    global _world
    timeout = in_range("timeout", timeout, 0.0, float("inf"), "()")
    launched = max((int(n) for name in LAUNCHED if (n := os.environ.get(name, "")).isdecimal()), default=1)
    if comm is None:
        try:
            from mpi4py import MPI

            comm = MPI.COMM_WORLD
        except (ImportError, RuntimeError) as error:  # not installed, or without an MPI library
            if launched > 1:
                raise ConfigurationError(
                    f"{launched} ranks were started, and mpi4py does not work here ({error}): "
                    "pip install mpi4py mpich (impi-rt on Windows)"
                ) from None
    size = 1 if comm is None else comm.size
    if size == 1 < launched:
        raise ConfigurationError(
            f"{launched} ranks were started, and each sees itself alone: this mpirun belongs to another MPI than mpi4py's; take "
            "the one that was installed with it (clnn run-mpi finds that)"
        )
    if _world is None or _world.comm is not comm or _world.size != size:
        _world = World(comm if size > 1 else None, timeout)
    _world.timeout = timeout
    return _world


def current() -> World:
    """The world that `init` gave last; one rank alone without it."""
    return _world or World(None, 60.0)


class World(Alone):
    """The ranks that train together: `rank` of `size`, `local_rank` among those on this machine, on `device`.

    `with world:` around a loop of your own tells the others at once where it fails on this rank, and Ctrl-C ends it on all
    ranks with the same step. `optimizer.world = world` has `optimizer.step()` average gradients.
    """

    def __init__(self, comm: Any, timeout: float) -> None:
        self.comm, self.timeout = comm, timeout
        self.rank, self.size = (0, 1) if comm is None else (comm.rank, comm.size)
        self.local_rank, self.device = 0, None
        self._depth = self._waits = 0
        self._interrupted = self._stop = False
        self._told: BaseException | None = None  # what the others know
        self._broken = ""  # why nothing can be exchanged any more
        if self.size > 1:
            from mpi4py import MPI

            self._mpi: Any = MPI
            self._own = comm.Dup()  # messages of a user's own stay apart
            self._calls, self._last = comm.Dup(), comm.Dup()
            self._present: dict[int, int] = {}  # by rank: the wait that it is in, as far as it has said so
            self._sent: list[Any] = []
            here = comm.Split_type(MPI.COMM_TYPE_SHARED)
            self.local_rank = here.rank
            self._chosen = use(device_of(self.local_rank))
            self._chosen.__enter__()
            self._hook, sys.excepthook = sys.excepthook, self._uncaught
            atexit.register(self._end)
        self.device = device()

    def __repr__(self) -> str:
        return f"<rank {self.rank} of {self.size} on {self.device!r}>"

    def __reduce__(self) -> Any:  # a copy is the same world
        return current, ()

    # -- what users call ----------------------------------------------------------------------------------------------
    def print(self, *values: Any, **options: Any) -> None:
        """`print` on rank 0 alone, at once."""
        if self.rank == 0:
            print(*values, **{"flush": True, **options})

    def save(self, model: Any, path: Any, **options: Any) -> None:
        """`model.save(path, **options)` by rank 0; the others wait until the file is there."""
        with self:
            if self.rank == 0:
                model.save(path, **options)
            self.wait()

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            self._agree(WAIT)

    def gather(self, value: T) -> list[T]:
        """What each rank gives, in their order: any values that can be pickled."""
        if self.size == 1:
            return [value]
        mine = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = self._agree(GATHER, length=len(mine))["length"]
        every = np.empty(int(lengths.sum()), np.uint8)
        self._finish(self._own.Iallgatherv(mine, (every, lengths.tolist())))
        return [pickle.loads(part.tobytes()) for part in np.split(every, np.cumsum(lengths)[:-1])]

    def first(self, value: T) -> T:
        """What rank 0 gives, on all ranks."""
        if self.size == 1:
            return value
        mine = np.frombuffer(pickle.dumps(value) if self.rank == 0 else b"", np.uint8)
        length = int(self._agree(FIRST, length=len(mine))["length"][0])
        mine = mine.copy() if self.rank == 0 else np.empty(length, np.uint8)
        self._finish(self._own.Ibcast(mine))
        return pickle.loads(mine.tobytes())

    def broadcast(self, model: Layer, optimizer: Any = None) -> None:
        """The parameters of a built model, and the optimizer's state, become rank 0's; from here on dropout draws other numbers
        on each rank. `fit` does it by itself; call it before a loop of your own."""
        if self.size == 1:
            return
        parameters = model.parameters()
        from . import __version__

        table = [(p.name, p.shape, p.dtype.name, p.trainable) for p in parameters]
        self._compare({"clnn": __version__, "the model": table})
        count = sum(p.size for p in parameters)
        self._agree(WEIGHTS, count)
        for p in parameters:
            array = np.atleast_1d(p.numpy())
            self._finish(self._own.Ibcast(array))
            if self.rank:
                p.device.upload(array, p.block)
                p.version += 1
        if optimizer is not None:
            optimizer.attach(parameters)
            state = optimizer.state_dict(model.named_parameters())
            if len(set(self.gather(zlib.crc32(pickle.dumps(state))))) > 1:
                state = self.first(state)
                if self.rank:
                    optimizer.load_state_dict(state)
                    optimizer.attach(parameters)
        self.reseed(model.device)

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, elementwise. Its gradient is the sum of theirs, so that a loss which all ranks have
        alike counts `size` times, which the mean in `optimizer.step()` divides by."""
        return x if self.size == 1 else apply(self._summed, x)

    def mean(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The mean of a tensor over all ranks, sum_r weight_r x_r / sum_r weight_r: of a mean loss with the number of its rows as
        the weight, the mean over all rows, whose `backward()` is right also where ranks have unequal numbers of them."""
        if self.size == 1:
            return x
        row = fill(empty(x.device, (1,), x.dtype), float(weight))
        known = Tensor(row.block, (1,), x.dtype, x.device)
        both = self.sum(concat([x.reshape(-1) * known, known]))
        return (both[:-1] / both[-1:]).reshape(x.shape)

    # -- what an optimizer and fit call -------------------------------------------------------------------------------
    def combine(self, parameters: Sequence[Parameter], mean: bool) -> None:
        """Add up the gradients of all ranks, or take their mean: one Allreduce for each stretch of a flat store."""
        found: list[list[Any]] = []
        for run in runs(parameters):
            if found and found[-1][0] is run.store and found[-1][2] == run.start:
                found[-1][2] = run.stop
            else:
                found.append([run.store, run.start, run.stop])
        for store, start, stop in found:
            whole = store.gradients()
            block = whole if stop - start == store.nbytes else whole.view(start, stop - start)
            call = functools.partial(self._allreduce, COMBINE, store.dtype, mean)
            store.device.call("allreduce", call, (block,), ((stop - start) // store.dtype.itemsize,))

    def share(self, kept: Array, counts: bool) -> Array:
        """Where a loss ignores targets: the factor by which this rank's mean enters the mean over all. `kept`: what the mean
        divides by, and how many targets count; none where not `counts`."""
        found = empty(kept.device, (), kept.dtype)
        call = functools.partial(self._shared, kept.dtype, counts)
        kept.device.call("share", call, (kept.block, found.block), ())
        return found

    def stretches(self, n: int, batch: int) -> list[tuple[int, int, float | None]]:
        if self.size == 1:
            return super().stretches(n, batch)
        whole, rest = divmod(n, batch * self.size)
        mine = _part(rest, self.rank, self.size)
        # without a row of its own it takes one that does not count
        last: list[tuple[int, int, float | None]] = [(max(1, mine), 1, mine / rest)] if rest else []
        return [(batch, whole, 1.0 / self.size), *last] if whole else last

    def order(self, order: np.ndarray, batch: int) -> np.ndarray:
        if self.size == 1:
            return order
        whole, rest = divmod(len(order), batch * self.size)
        steps = order[: whole * batch * self.size].reshape(whole, self.size, batch)[:, self.rank].ravel()
        begin = len(order) - rest + sum(_part(rest, rank, self.size) for rank in range(self.rank))
        mine = order[begin : begin + _part(rest, self.rank, self.size)]
        return np.concatenate([steps, mine if len(mine) or not rest else order[:1]])

    def part(self, n: int) -> slice:
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size) if self.size > 1 else slice(n)

    def sums(self, values: np.ndarray) -> np.ndarray:
        if self.size == 1:
            return values
        values = np.array(values, np.float64)
        self._agree(SUM, values.size, values.itemsize)
        self._finish(self._own.Iallreduce(self._mpi.IN_PLACE, values))
        return values

    def begin(self, model: Any, optimizer: Any, arrays: Any, settings: dict[str, Any]) -> None:
        if self.size == 1:
            return
        facts: dict[str, Any] = {
            "the optimizer": _words(optimizer),
            **{name: _words(value) for name, value in settings.items()},
        }
        for label, some in zip(("the samples", "the validation data"), arrays):
            facts[label] = None if some is None else [_digest(a) for group in some for a in group]
        self._compare(facts)
        stretches = self.stretches(len(arrays[0].xs[0]), settings["batch_size"])
        if any(isinstance(one, SyncBatchNorm) for one in model.layers_inside()) and any(
            self.gather(any(share == 0 for *_, share in stretches))
        ):
            raise ConfigurationError(
                f"the last mini-batch has fewer samples than there are ranks, {self.size}, and SyncBatchNorm would count one "
                "that stands in: take another batch_size"
            )
        self.broadcast(model, optimizer)
        generator = random.host()  # what shuffles where there is no seed
        generator.bit_generator.state = self.first(generator.bit_generator.state)

    def reseed(self, device: Device) -> None:
        if self.size == 1:
            return
        generator = random.generator(device)
        position, low, high = self.first(generator.state())
        generator.set_state((position, low ^ (self.rank * 0x9E3779B1 & 0xFFFFFFFF), high ^ self.rank))

    def settle(self, model: Any) -> None:
        if self.size == 1:
            return
        parameters = model.parameters()
        for p in parameters:
            if not p.learns:
                p.device.upload((self.sums(p.numpy()) / self.size).astype(p.dtype).reshape(p.shape), p.block)
                p.version += 1
        mine = [zlib.crc32(p.numpy().tobytes()) for p in parameters if p.learns]
        self._compare(
            {p.name: crc for p, crc in zip((p for p in parameters if p.learns), mine)}, "weights have come apart"
        )

    def at_once(self, steps: int) -> int:
        return steps if self.size == 1 else 1

    def check(self) -> None:
        if self._stop:
            self._stop = self._interrupted = False
            self._told = KeyboardInterrupt()
            raise self._told

    # -- the exchange -------------------------------------------------------------------------------------------------
    def _allreduce(self, kind: int, dtype: Any, mean: bool, queue: Any, buffer: Any, count: int) -> None:
        """Add up `count` elements of a device's memory over all ranks, or take their mean. On a CPU the mapped memory is the
        device's own."""
        mode: Any = cl.map_flags.READ | cl.map_flags.WRITE
        values, _ = cl.enqueue_map_buffer(queue, buffer, mode, 0, (count,), dtype, is_blocking=True)
        try:
            self._agree(kind, count, dtype.itemsize, int(mean))
            each = PIECE // dtype.itemsize
            for start in range(0, count, each):
                self._finish(self._own.Iallreduce(self._mpi.IN_PLACE, values[start : start + each]), spin=1.0)
            if mean:
                np.multiply(values, dtype.type(1.0 / self.size), out=values)
        finally:
            values.base.release(queue)

    def _summed(self, x: Array) -> tuple[Array, Backward]:
        """y = the sum of x over ranks."""

        def total(a: Array) -> Array:
            y = empty_like(a)
            a.device.copy(a.block, y.block, a.nbytes)
            call = functools.partial(self._allreduce, SUM, a.dtype, False)
            a.device.call("allreduce", call, (y.block,), (a.size,))
            return y

        def backward(dy: Array) -> Iterator[tuple[Array, Array]]:
            yield x, total(dy)

        return total(x), backward

    def _shared(self, dtype: Any, counts: bool, queue: Any, kept: Any, factor: Any) -> None:
        divisor, count = np.empty(2, dtype), np.zeros(1, np.float64)
        cl.enqueue_copy(queue, divisor, kept)
        count[0] = divisor[1] * counts
        self._agree(SHARE)
        self._finish(self._own.Iallreduce(self._mpi.IN_PLACE, count))
        cl.enqueue_copy(queue, factor, np.array(divisor[0] * counts / max(count[0], 1.0), dtype))

    def _agree(self, kind: int, *same: int, length: int = 0, limit: float | None = -1.0) -> np.ndarray:
        """Tell all ranks what this one is about to do, and hear of theirs. DistributedError where one does something else."""
        if self._broken:
            raise DistributedError(self._broken)
        if kind not in (FAILED, ENDED):
            self.check()
        mine, every = np.zeros(1, RECORD), np.zeros(self.size, RECORD)
        mine["kind"], mine["same"][0, : len(same)], mine["length"] = kind, same, length
        mine["interrupted"] = self._interrupted
        self._finish(self._own.Iallgather(mine.view(np.uint8), every.view(np.uint8)), limit=limit)
        self._stop = self._stop or bool(every["interrupted"].any())
        failed = np.flatnonzero(every["kind"] == FAILED)
        if len(failed):
            said = self._words(length if kind == FAILED else 0, every["length"])
            if kind == FAILED:
                return every
            ranks = "; ".join(f"rank {rank} of {self.size} {DOING[FAILED]}: {said[rank]}" for rank in failed)
            raise self._known(DistributedError(ranks))
        for rank, one in enumerate(every):
            if (one["kind"], *one["same"]) != (every[0]["kind"], *every[0]["same"]):
                here, there = (DOING[r["kind"]].format(*map(int, r["same"])) for r in (every[0], one))
                raise self._known(
                    DistributedError(
                        f"the ranks do not do the same: rank 0 {here}, and rank {rank} {there}. Every rank has to run the same "
                        "program on the same samples; only what is done on one rank alone may stand behind `if world.rank == 0`"
                    )
                )
        return every

    def _words(self, length: int, lengths: np.ndarray) -> list[str]:
        """What the ranks that failed say of it."""
        mine, every = np.frombuffer(self._failure[:length], np.uint8), np.empty(int(lengths.sum()), np.uint8)
        self._finish(self._own.Iallgatherv(mine, (every, lengths.tolist())))
        return [part.tobytes().decode(errors="replace") for part in np.split(every, np.cumsum(lengths)[:-1])]

    _failure = b""

    def _known(self, error: BaseException) -> BaseException:
        """An error that all ranks have."""
        self._told = error
        return error

    def _compare(self, facts: dict[str, Any], why: str = "the ranks are not to do the same") -> None:
        """DistributedError where these are not equal on all ranks; it names the first that differs, and whose it is."""
        every = self.gather(facts)
        for rank, theirs in enumerate(every):
            for name, value in every[0].items():
                if theirs.get(name) != value:
                    one, other = _first_difference(value, theirs.get(name))
                    raise self._known(DistributedError(f"{why}: {name} is {one} on rank 0, and {other} on rank {rank}"))

    def _finish(self, request: Any, spin: float = SPIN, limit: float | None = -1.0) -> None:
        """Wait for what was begun with the other ranks; DistributedError where one does not come in time."""
        self._waits += 1
        if request.Test():
            return
        limit = self.timeout if limit == -1.0 else limit
        began, said = time.monotonic(), False
        while not request.Test():
            waited = time.monotonic() - began
            if waited < spin:
                continue
            time.sleep(5e-5 if waited < 1.0 else 1e-3)
            if limit is None:
                continue
            if waited > limit / 3 and not said:
                said = True
                self._say_present()
            self._hear()
            if waited > limit + 1.0:  # the others may have come a moment ago
                missing = [r for r in range(self.size) if r != self.rank and self._present.get(r) != self._waits]
                ranks = ", ".join(map(str, missing)) or "none: all wait, and nothing moves"
                self._broken = (
                    f"rank {self.rank} of {self.size} has waited {waited:.0f} s for rank {ranks}, which did not come: it hangs "
                    "or is slower than init(timeout=...) allows"
                )
                raise self._known(DistributedError(self._broken))

    def _say_present(self) -> None:
        """Tell all ranks in which wait this one is, so that those who miss one know who it is."""
        here = np.array([self._waits], np.int64)
        self._sent += [(here, self._calls.Isend(here, rank)) for rank in range(self.size) if rank != self.rank]

    def _hear(self) -> None:
        status, there = self._mpi.Status(), np.empty(1, np.int64)
        while self._calls.Iprobe(status=status):
            self._calls.Recv(there, status.source)
            self._present[status.source] = int(there[0])

    # -- failures -----------------------------------------------------------------------------------------------------
    def __enter__(self) -> World:
        self._depth += 1
        if self.size > 1 and self._depth == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._depth -= 1
        if self.size == 1:
            return
        if not self._depth and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)
        if error is not None:
            self._tell(error)
        elif not self._depth and self._interrupted and not self._stop:
            self._interrupted = False
            raise KeyboardInterrupt

    def _interrupt(self, *_: Any) -> None:
        """Ctrl-C: noted, so that all ranks end with the same step; the second one ends this rank at once."""
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def _tell(self, error: BaseException) -> None:
        """Have the others know of an error of this rank alone."""
        if error is self._told or self._broken:
            return
        self._told = error
        self._failure = "".join(traceback.format_exception_only(type(error), error)).strip().encode()[:4000]
        with contextlib.suppress(DistributedError):  # the others may be gone
            self._agree(FAILED, length=len(self._failure))

    def _uncaught(self, kind: Any, error: Any, trace: Any) -> None:
        """Print an exception that ends this rank's program, and end the others."""
        print(f"clnn: on rank {self.rank} of {self.size}:", file=sys.stderr)
        self._hook(kind, error, trace)
        sys.stderr.flush()
        sys.stdout.flush()
        if not self._broken:
            self.timeout = min(self.timeout, FAREWELL)
            self._tell(error)
        self._part_and_abort(130 if isinstance(error, KeyboardInterrupt) else 1)

    def _end(self) -> None:
        """The program of this rank ends: so should those of the others."""
        try:
            if not self._broken:
                self._agree(ENDED, limit=None)
                return
        except DistributedError as error:
            print(f"clnn: on rank {self.rank} of {self.size}: {error}", file=sys.stderr, flush=True)
        self._part_and_abort(1)

    def _part_and_abort(self, status: int) -> None:
        """End all ranks, after a moment in which they may print what they have to say."""
        request, until = self._last.Ibarrier(), time.monotonic() + FAREWELL
        while not request.Test() and time.monotonic() < until:
            time.sleep(0.01)
        self.comm.Abort(status)


def device_of(local_rank: int) -> Device:
    """The device that a rank takes: of those like the one in use the next, in turns."""
    mine = device()
    if ":" in os.environ.get("CLNN_DEVICE", ""):
        return mine
    like = [d for d in devices() if (d.kind, d.platform, d.name) == (mine.kind, mine.platform, mine.name)]
    return like[local_rank % len(like)]


def _part(n: int, rank: int, size: int) -> int:
    """How many of n rows a rank has, so that none has two more than another."""
    return n // size + (rank < n % size)


def _words(one: Any) -> str:
    """A loss, an optimizer or a number as all ranks should have it."""
    if isinstance(one, (int, float, str, bool, type(None))):
        return repr(one)
    config = getattr(one, "config", None)
    return f"{getattr(one, '__qualname__', type(one).__qualname__)}{config() if callable(config) else ''}"


def _digest(array: np.ndarray | None) -> Any:
    """What tells two arrays of samples apart: shape, type and a checksum, of some rows where they are many."""
    if array is None:
        return None
    nbytes = math.prod(array.shape) * array.dtype.itemsize  # of a sparse one, if it were dense
    some = array[:: max(1, nbytes // MOST_HASHED)]
    return array.shape, array.dtype.name, zlib.crc32(np.ascontiguousarray(some).data)


def _first_difference(a: Any, b: Any) -> tuple[Any, Any]:
    """Two values, or the first of their entries that differ."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next((x, y) for x, y in zip(a, b) if x != y)
    return a, b


@register
class SyncBatchNorm(BatchNorm):
    """BatchNorm whose mean and variance in training are those of the mini-batches of all ranks together; `BatchNorm` takes those
    of its own rank, and its running statistics become the mean of all ranks' after each epoch.

    Two exchanges in each forward and each backward pass. A world of one has BatchNorm's own kernels.
    """

    def forward(self, x: Tensor) -> Tensor:
        world = current()
        if world.size == 1 or not (self.trains() and self.trainable):
            return super().forward(x)
        axes, form = (0, *range(2, x.ndim)), (1, -1, *(1,) * (x.ndim - 2))
        row = fill(empty(x.device, (1,), x.dtype), float(x.size // x.shape[1]))
        known = world.sum(concat([x.sum(axes), Tensor(row.block, (1,), x.dtype, x.device)]))
        n, mean = known[-1:], known[:-1] / known[-1:]
        apart = x - mean.reshape(form)
        variance = world.sum((apart * apart).sum(axes)) / n
        follow = Scale.constant(x.device, x.dtype, 1.0 - self.momentum, self.momentum)
        for running, batch in ((self.running_mean, mean), (self.running_variance, variance * (n / (n - 1.0)))):
            scale_add(batch.detach(), running.block, follow)
        y = apart / ((variance + self.epsilon) ** 0.5).reshape(form)
        if self.gamma is not None and self.beta is not None:
            y = y * self.gamma.reshape(form) + self.beta.reshape(form)
        return function(y, self.activation)


tell(sys.modules[__name__])
