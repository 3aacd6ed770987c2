"""What `clnn verify` measures: the device and its limits, its peaks, launches, products, convolutions, training steps."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np
import pyopencl as cl

from ... import __version__
from ...errors import OutOfDeviceMemory
from ...gemm import Shape, engine_name, tile, tuning
from ...ops.image.conv_plan import plan_for, shown
from ...ops.image.geometry import flipped, geometry
from ...ops.image.window import slide
from ...runtime.device import Device
from ...runtime.devices.choice import device
from ...runtime.profile.peaks import Peaks
from ...runtime.recording import Replays
from ..bench import nets, own, workloads
from ..drivers import loader

Say = Callable[..., None]
LONG = 0.1  # seconds that a task takes at the device's peak, from which it is left out
LIMITS = (
    *("max_compute_units", "max_clock_frequency", "global_mem_size", "max_mem_alloc_size", "local_mem_size"),
    *("max_constant_buffer_size", "max_work_group_size", "max_work_item_sizes", "mem_base_addr_align", "address_bits"),
    *("native_vector_width_float", "preferred_vector_width_float", "host_unified_memory", "global_mem_cache_size"),
    *("opencl_c_version", "version", "vendor", "warp_size_nv", "wavefront_width_amd", "sub_group_sizes_intel"),
)


def about(say: Say, began: float) -> dict[str, Any]:
    """The device, its limits, and what runs on it."""
    d = device()
    limits = {}
    for name in LIMITS:
        try:
            limits[name] = getattr(d.cl_device, name)
        except (cl.Error, AttributeError):  # not every device knows every question
            continue
    packages = {}
    for package in ("pyopencl", "numpy", "pyclblast"):
        try:
            packages[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    d.queue  # noqa: B018 - opens the device
    return {
        **own.about(), "kind": d.kind, "lanes": d.vector_width(np.float32), "fp16": d.has_fp16, "fp64": d.has_fp64,
        "limits": {name: value if isinstance(value, (int, str)) else list(value) for name, value in limits.items()},
        "extensions": d.cl_device.extensions.split(), "clnn": __version__, "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}", "packages": packages,
        "processors": os.cpu_count(), "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "loader": str(loader()), "form": d.form,
    }  # fmt: skip


def peaks(say: Say, began: float) -> dict[str, Any]:
    """What the device can do at most; what a launch costs, recorded and not, and waiting for one."""
    d = device()
    found: dict[str, Any] = Peaks(d).measure()
    block, many = d.memory.allocate(4), 200

    def launches(_: Any) -> None:
        for _ in range(many):
            d.launch("elementwise", "fill", (1,), 1, block, 0.5)

    replays = Replays("verify")

    def recorded() -> None:
        replays.run(d, "launches", launches)

    for _ in range(3):
        recorded()
    found["launch_recorded"] = _least(recorded, d) / many
    found["launch_eager"] = _least(lambda: launches(None), d) / many
    found["wait"] = _least(lambda: d.launch("elementwise", "fill", (1,), 1, block, 0.5), d)
    return found


def _least(run: Callable[[], Any], d: Device, seconds: float = 0.2) -> float:
    """The least seconds that a call takes, over so many seconds and three calls at least."""
    run()
    d.finish()
    best, count, began = float("inf"), 0, time.perf_counter()
    while count < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        d.finish()
        best, count = min(best, time.perf_counter() - start), count + 1
    return best


def _timed(say: Say, what: str, name: str, plan: str, run: Any, error: float, flops: float) -> None:
    """Tell how long one call of a task takes, and whether its results are right."""
    each = getattr(run, "at_once", 1)
    run(each)
    run(each)
    seconds = _least(lambda: run(each), device()) / each
    say(timed=name, what=what, plan=plan, seconds=seconds, flops=flops, error=error)
    if not error <= workloads.OUTPUT_TOLERANCE:
        say(wrong=f"{name} is off by {error:.2g} of its largest value ({workloads.OUTPUT_TOLERANCE:g} is allowed)",
            off=str(error))  # fmt: skip


@contextlib.contextmanager
def _where_it_fits(say: Say, name: str) -> Iterator[None]:
    """What the device's memory does not hold, or not in one piece, is left out."""
    try:
        yield
    except OutOfDeviceMemory as error:
        say(note=f"{name} is left out: {error}")


def _small_enough(flops: float, peak: float) -> bool:
    return flops / (peak * 1e9) < LONG


def products(say: Say, began: float) -> dict[str, Any]:
    """Products of training, and square ones, with their epilogues."""
    d = device()
    peak = Peaks(d).measure()
    mlp = workloads.training_products(128, workloads.NETS["mlp"].sizes)
    chosen = [mlp[0], mlp[3], mlp[6], *(workloads.Product("NN", n, n, n) for n in (960, 2048))]
    for p in chosen:
        if not _small_enough(2 * p.work, peak["gflops"]):
            say(note=f"{p.name} is left out: too large for this device")
            continue
        say(case=p.name)
        with _where_it_fits(say, p.name):
            run, result = own.Clnn().product(p)
            run(1)
            error = p.error(*result())
            _timed(say, "product", p.name, _plan(d, p), run, error, 2 * p.work)
    return peak


def _plan(d: Device, p: workloads.Product) -> str:
    shape = Shape.of(*p)
    if engine_name(d, shape) == "clblast":
        return "CLBlast"
    t = tile.choose(d, shape, tuning.find(d, shape).tile)
    kind = "row" if t.row else "local" if t.local else "tile"
    return f"gemm_{kind} {t.mr}x{t.nv}x{t.vw}" + (f", {t.kc} deep" if t.kc else "")


def convolutions(say: Say, began: float) -> dict[str, Any]:
    """The convolutions of a small network, forward and their gradients."""
    d = device()
    peak = Peaks(d).measure()
    for c in nets.convolutions([nets.NETS["cnn"]]):
        if not _small_enough(c.flops, peak["gflops"]):
            say(note=f"{c.name} is left out: too large for this device")
            continue
        say(case=c.name)
        with _where_it_fits(say, c.name):
            run, result = own.Clnn().convolution(c, "")
            run(1)
            _timed(say, "convolution", c.name, _conv_plan(d, c), run, c.error(*result()), c.flops)
    return peak


def _conv_plan(d: Device, c: nets.Convolution) -> str:
    l = c.layer
    window = slide("verify", c.shape, (l.kernel,) * 2, (l.stride,) * 2, ((l.padding,) * 2,) * 2)
    g = geometry(window, l.groups, c.shape[1] // l.groups, l.size // l.groups)
    return shown(plan_for(d, flipped(g) if c.way == "dx" else g, np.dtype(np.float32), c.shape[0], c.way == "dw"))


def _training(name: str) -> Callable[[Say, float], dict[str, Any]]:
    def measure(say: Say, began: float) -> dict[str, Any]:
        d, net = device(), nets.ALL[name]
        start = time.time()
        peak, measuring = Peaks(device()).measure(), time.time() - start
        if net.flops / (peak["gflops"] * 1e9) > 10 * LONG:
            say(note=f"{name} is left out: too large for this device")
            return peak
        say(case=f"the first step of {name}")
        done = False
        with _where_it_fits(say, name):
            own.train_epochs(net._replace(steps=1), 1)
            done = True
        if not done:
            return peak
        first = time.time() - began - measuring
        say(case=f"training {name}")
        times: list[float] = []
        end, last, launches = time.perf_counter() + 3, time.perf_counter(), d.launches

        def after(loss: float) -> None:
            nonlocal last, launches
            now = time.perf_counter()
            times.append(now - last)
            if len(times) >= 3 and now > end - 2 or now > end + 10:
                raise own.Enough
            last, launches = time.perf_counter(), d.launches

        steps = net.steps if _small_enough(net.flops, peak["gflops"]) else 2
        with contextlib.suppress(own.Enough):
            own.Clnn().train(net._replace(steps=steps), {}, after)
        each = (d.launches - launches) / steps
        say(timed=f"{name}, a step", what="step", plan=f"{each:.3g} launches", seconds=min(times) / steps, flops=net.flops,
            launches=each)  # fmt: skip
        return {**peak, "first_step": first}

    return measure


TASKS: dict[str, Callable[[Say, float], dict[str, Any]]] = {
    "device": about,
    "peaks": peaks,
    "products": products,
    "convolutions": convolutions,
    **{name: _training(name) for name in ("nielsen", "mlp", "cnn")},
}
