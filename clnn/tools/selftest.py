"""The self-test of a device (runtime/devices/selftest.py runs it): small work of each kind that clnn gives it, against NumPy."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ClnnError
from ..gemm import Product, Shape, gemm
from ..ops.random import Generator
from ..runtime.ahead import Ahead, bundles
from ..runtime.bundles import Key
from ..runtime.device import Device, ValuesWanted
from ..runtime.devices.choice import devices, use
from ..tensor import tensor

# Of counter 0 and key 0: kat_vectors of the authors' Random123
PHILOX = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
SEED, MANY, CRC = 0x85A308D3243F6A88, 4096, 0x7440EB27  # the CRC-32 of as many words as bytes, lowest first


def main(identity: str) -> None:
    """Test one device and print a line of JSON for each step, so that the last one tells where a process ended."""
    device = next((one for one in devices() if one.identity == identity), None)
    if device is None:
        sys.exit(f"it did not find {identity}")
    turns = 0
    with use(device):
        for test in (opening, *TESTS):
            _say(test=(test.__doc__ or "").partition(":")[0])
            try:
                for wrong in test(device):
                    _say(wrong=wrong)
            except ClnnError as error:
                _say(wrong=str(error))
                if test is opening:
                    break
        else:
            _say(test="loops")
            try:
                turns = device.most_turns
            except ClnnError as error:
                _say(wrong=str(error))
    _say(turns=turns)
    os._exit(0)  # drivers take a while to leave, and all is said


class Listing(Ahead):
    """The launches of a test until it waits for something, which then ends it."""

    def run(self) -> None:
        if self.waiting:
            raise ValuesWanted


def launched(device: Device) -> list[Key]:
    """The programs that tests launch before they first wait for something."""
    found: dict[Key, None] = {}
    for test in TESTS[1:]:
        device._now.ahead = listing = Listing(device, 0)
        with contextlib.suppress(ValuesWanted):
            list(test(device))
        device._now.ahead = None
        found |= {job[0].program: None for _, job in listing.waiting if job is not None}
    return [*found]


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _far(what: str, got: Any, right: Any, most: float) -> Iterator[str]:
    """A sentence if `got` is further from `right` than `most`, in parts of the largest."""
    error = np.abs(np.asarray(got, np.float64) - right) / np.abs(right).max()
    if not error.max() <= most:
        at = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
        yield f"{what} {np.ravel(got)[at]!r} where {np.ravel(right)[at]!r} is right"


def _reals(device: Device) -> list[Any]:
    return [np.float32, np.float64] if device.has_fp64 else [np.float32]


def opening(device: Device) -> Iterator[str]:
    """its opening: a context and a queue."""
    device.queue  # noqa: B018
    yield from ()


def together(device: Device) -> Iterator[str]:
    """compiling: what the other tests need, as one text where the driver gains by it."""
    if bundles(device) and device.most_turns >= 0:  # which is asked first: it launches and reads
        device.programs.load(launched(device))
    yield from ()


def random_numbers(device: Device) -> Iterator[str]:
    """random numbers: Philox' known answer, and the checksum of many more."""
    first = Generator(device, 0).bits(4)
    if first.tolist() != PHILOX:
        yield f"Philox' first random numbers are {', '.join(map(str, first))}, and {', '.join(map(str, PHILOX))} are right"
    words = Generator(device, SEED).bits(MANY)
    if (got := zlib.crc32(words.astype("<u4").tobytes())) != CRC:
        yield f"{MANY} random numbers have the checksum {got:#x}, and {CRC:#x} is right"


def sums(device: Device) -> Iterator[str]:
    """sums: of whole numbers, so that the order does not matter."""
    x = np.arange(-20_000, 40_000)
    got = float(tensor(x.astype(np.float32) % 100).sum())
    if got != (x % 100).sum():
        yield f"a sum of 60,000 numbers is {got}, and {(x % 100).sum()} is right"


def conversions(device: Device) -> Iterator[str]:
    """conversions: between whole numbers, bytes and floats, in vectors."""
    for dtype in _reals(device):
        x, (n, width), blocks = _inputs(device, dtype, 3e4)
        whole, back, low, size = blocks(np.int32), blocks(dtype), blocks(np.uint8), blocks(dtype)
        device.launch(
            "selftest", "conversions", (n,), n, x[1], whole, back, low, size, real=device.real(dtype), VW=width
        )
        right = np.trunc(x[0]).astype(np.int32)
        for name, block, expected in (
            ("whole numbers of floats", whole, right),
            ("floats of whole numbers", back, right.astype(dtype)),
            ("bytes of whole numbers", low, (right & 255).astype(np.uint8)),
            ("absolute values", size, np.abs(x[0])),
        ):
            yield from _far(f"{name} ({np.dtype(dtype)}):", device.read(block, np.empty_like(expected)), expected, 0)


def functions(device: Device) -> Iterator[str]:
    """functions: exp, tanh, sqrt and log, in vectors."""
    for dtype in _reals(device):
        x, (n, width), _ = _inputs(device, dtype, 4)
        y = device.allocate(4 * x[0].nbytes)
        device.launch("selftest", "functions", (n,), n, x[1], y, real=device.real(dtype), VW=width)
        v = x[0].astype(np.float64)
        rows = np.exp(v), np.tanh(v), np.sqrt(np.abs(v)), np.log(np.abs(v) + 1)
        for name, got, right in zip(("exp", "tanh", "sqrt", "log"), device.read(y, np.empty((4, v.size), dtype)), rows):
            yield from _far(f"{name} ({np.dtype(dtype)}):", got, right, 32 * np.finfo(dtype).eps)


def _inputs(device: Device, dtype: Any, most: float) -> Any:
    """Numbers up to `most` and their block, one element into it; how many vectors these are, and their width; blocks like it."""
    width = device.vector_width(dtype)
    x = np.random.default_rng(0).uniform(-most, most, 1 + 37 * width).astype(dtype)
    block = device.allocate(x.nbytes)
    device.upload(x, block)
    return (x[1:], block), (37, width), lambda dtype: device.allocate(37 * width * np.dtype(dtype).itemsize)


def groups(device: Device) -> Iterator[str]:
    """local memory: sums within groups of work-items that wait for each other."""
    width = device.fitting(min(64, device.group_width), "selftest", "groups")
    x = np.arange(10 * width - 3, dtype=np.float32) % 50
    on, y = device.allocate(x.nbytes), device.allocate(40)
    device.upload(x, on)
    device.launch("selftest", "groups", (10 * width,), x.size, on, y, local=(width,), WIDTH=width)
    yield from _far(
        "sums in local memory:",
        device.read(y, np.empty(10, np.float32)),
        np.append(x, [0] * 3).reshape(10, width).sum(1),
        0,
    )


def products(device: Device) -> Iterator[str]:
    """matrix products: by clnn's own kernel, with an odd edge everywhere."""
    m, n, k = 67, 45, 33
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    on_a, on_b, on_c = (device.allocate(4 * size) for size in (m * k, k * n, m * n))
    device.upload(a, on_a)
    device.upload(b, on_b)
    gemm(device, Product(Shape(m, n, k), on_a, on_b, on_c))
    yield from _far("a matrix product:", device.read(on_c, np.empty((m, n), np.float32)), a.astype(float) @ b, 1e-5)


TESTS = (together, random_numbers, sums, conversions, functions, groups, products)
