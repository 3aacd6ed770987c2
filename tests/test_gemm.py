"""GEMM against NumPy in float64: both engines, every form of the product and of its epilogue."""

import ctypes
import json

import numpy as np
import pytest
from helpers import REFERENCES, as_a_cpu, assert_close, derivative, eps, normal

import clnn
from clnn.gemm import (
    SCALE_PAIRS,
    Product,
    RowsOf,
    Scale,
    Shape,
    clblast,
    clblast_problem,
    column_sums,
    engine_name,
    gemm,
    tile,
    tuning,
)  # fmt: skip

GUARD = 37  # elements around each matrix that nobody may touch


@pytest.fixture(params=["tile", "clblast"])
def engine(request, device, monkeypatch):
    """Each engine in turn; `clblast` where pyclblast is installed."""
    if request.param == "clblast" and (problem := clblast_problem(device)):
        pytest.skip(problem)
    monkeypatch.setenv("CLNN_GEMM", request.param)
    return request.param


class Matrix:
    """A matrix at the start of a buffer of NaN, with a leading dimension of its own."""

    def __init__(self, device, values, dtype, room=0):
        rows, columns = values.shape
        self.device, self.shape, self.ld = device, values.shape, columns + room
        size = max(0, rows - 1) * self.ld + columns  # the last row ends where the matrix does
        self.host = np.full(size + GUARD, np.nan, dtype)
        self.inside = (np.arange(rows)[:, None] * self.ld + np.arange(columns)).astype(np.intp)
        self.host[self.inside] = values
        self.block = device.allocate(self.host.nbytes)
        device.upload(self.host, self.block)

    def read(self):
        """The matrix now; everything around it must be untouched."""
        now = self.device.read(self.block, np.empty_like(self.host))
        outside = np.ones(now.size, bool)
        outside[self.inside] = False
        assert np.isnan(now[outside]).all(), "memory around the matrix was written"
        return now[self.inside]


def exact(device, values, dtype):
    """Values in a block of just their size: reading past them reads NaN or someone else's."""
    block = device.allocate(values.size * np.dtype(dtype).itemsize)
    device.upload(np.ascontiguousarray(values, dtype), block)
    return block


def pair(device, dtype, alpha, beta):
    """(alpha, beta) as a row of a table that is not the first, as an optimizer gives them."""
    table = np.full((3, 2 * SCALE_PAIRS), np.nan, dtype)
    table[2, 2:4] = alpha, beta
    return Scale(exact(device, table, dtype), exact(device, np.array([2]), np.int32), 1, lambda: (alpha, beta))


def check(
    rng, device, dtype, m, n, k, ta=False, tb=False, *, scale=None, bias=False, act="linear", keep=False, times=False,
    sums=None, padded=False,
):  # fmt: skip
    """One product against NumPy, with everything it may not touch guarded."""
    what = f"{m} x {n} x {k}, transposed {ta}, {tb}"
    room = rng.integers(1, 20, 3) if padded else (0, 0, 0)
    a, b, c = normal(rng, (m, k), dtype), normal(rng, (k, n), dtype), normal(rng, (m, n), dtype)
    A = Matrix(device, a.T if ta else a, dtype, room[0])
    B = Matrix(device, b.T if tb else b, dtype, room[1])
    C = Matrix(device, c if scale and scale[1] else np.full((m, n), np.nan), dtype, room[2])
    bias_values, saved_values = normal(rng, n, dtype), normal(rng, (m, n), dtype)
    saved = Matrix(device, saved_values if times else np.full((m, n), np.nan), dtype) if keep or times else None
    d = normal(rng, n, dtype)
    D = Matrix(device, d[None], dtype) if sums else None
    options = {"lda": A.ld, "ldb": B.ld, "ldc": C.ld} if padded else {}
    if scale and sums:  # in one table, as the library's constants are
        both = pair(device, dtype, *scale)
        table = np.full((3, 2 * SCALE_PAIRS), np.nan, dtype)
        table[2, 2:6] = [*scale, *sums]
        device.upload(table, both.table)
        scales = both, Scale(both.table, both.at, 2, lambda: sums)
    else:
        scales = scale and pair(device, dtype, *scale), sums and pair(device, dtype, *sums)
    gemm(device, Product(
        Shape(m, n, k, dtype, ta, tb), A.block, B.block, C.block, **options,
        scale=scales[0], bias=exact(device, bias_values, dtype) if bias else None, activation=act,
        saved=saved.block if saved else None, derivative=times, sums=(D.block, scales[1]) if sums else None,
    ))  # fmt: skip
    alpha, beta = scale or (1.0, 0.0)
    z, magnitude = alpha * (a @ b), abs(alpha) * (np.abs(a) @ np.abs(b))
    if times:
        z, magnitude = z * derivative(act, saved_values), 1.2 * magnitude
    if beta:
        z, magnitude = z + beta * c, magnitude + np.abs(beta * c)
    if bias:
        z, magnitude = z + bias_values, magnitude + np.abs(bias_values)
    # each addition is off by half an eps of the sum so far at most; neither f' nor its slope is above 1.2
    bound = (k / 2 + 16) * eps(dtype) * (1 + magnitude)
    assert_close(C.read(), z if times else REFERENCES[act](z), bound, f"C of {what}")
    if keep:
        assert_close(saved.read(), derivative(act, z), bound, f"saved of {what}")
    if sums:
        total = sums[0] * b.sum(axis=0) + sums[1] * d
        most = 1 + abs(sums[0]) * np.abs(b).sum(axis=0) + np.abs(sums[1] * d)
        assert_close(D.read()[0], total, (k / 2 + 4) * eps(dtype) * most, f"sums of {what}")


FORMS = {  # form: (transposed a, transposed b, whether scaled, columns as in `products`, depths)
    "nn-narrow": (False, False, False, "narrow", (1, 7, 65)),
    "nn-middle": (False, False, True, "middle", (1, 7, 65)),
    "nn-wide": (False, False, True, "wide", (1, 7, 65)),
    "nn-large": (False, False, False, "large", (811,)),
    "tn-narrow": (True, False, True, "narrow", (1, 7, 65)),
    "tn-middle": (True, False, False, "middle", (1, 7, 65)),
    "tn-wide": (True, False, False, "wide", (1, 7, 65)),
    "tn-large": (True, False, True, "large", (811,)),
    "nt-shallow": (False, True, True, "one-middle", (1, 7, 15)),
    "nt-deep": (False, True, True, "one-wide", (16, 65, 300)),
    "tt-shallow": (True, True, True, "one-middle", (1, 7, 15)),
    "tt-deep": (True, True, False, "one-wide", (16, 65, 300)),
}
DOUBLE = ("nn-wide", "tn-middle", "nt-deep", "tt-shallow")
SCALES = ((1.0, 0.0), (1.0, 1.0), (-0.5, 2.0), (0.0, 0.5))


@pytest.mark.platform
@pytest.mark.parametrize("form", FORMS)
def test_products(rng, device, engine, form):
    products(rng, device, np.float32, *FORMS[form])


@pytest.mark.parametrize("form", DOUBLE)
@pytest.mark.parametrize("engine", ["tile", pytest.param("clblast", marks=pytest.mark.slow)], indirect=True)
def test_products_in_float64(rng, device, engine, form):
    if not device.has_fp64:
        pytest.skip("no float64")
    products(rng, device, np.float64, *FORMS[form])


def products(rng, device, dtype, ta, tb, scaled, columns, depths):
    """`columns` of C that select each of a CPU's tiles, and rows that fill a part of a tile, or several and a part."""
    lanes = device.vector_width(dtype)
    every = {
        "narrow": (1, lanes // 2 - 1, lanes),
        "middle": (lanes + 1, 2 * lanes - 2),
        "wide": (2 * lanes + 1, 4 * lanes + 3, 8 * lanes + 2),
        "large": (1300,),
        "one-middle": (1, 2 * lanes - 2),
        "one-wide": (1, 2 * lanes - 2, 8 * lanes + 2),
    }[columns]
    scales = SCALES if scaled else (None,)
    for i, (n, k, part) in enumerate((n, k, part) for n in every for k in depths for part in range(4)):
        if columns == "large" and part in (0, 2):
            continue
        rows = chosen(device, Shape(7, n, k, dtype, ta, tb)).mr
        m = (1, 3, max(1, rows - 1), 6 * rows + 3)[part]
        check(rng, device, dtype, m, n, k, ta, tb, scale=scales[i % len(scales)], padded=i % 2 == 0)


@pytest.mark.parametrize("form", ["nn", "tn", "nt"])
def test_rows_that_end_within_a_vector(rng, device, engine, form):
    """Of few columns the last vectors overlap: each element is still read and written once."""
    lanes, (ta, tb) = device.vector_width(np.float32), (letter == "t" for letter in form)
    for n in (lanes - 1, lanes, lanes + 1, 2 * lanes - 1, 2 * lanes, 3 * lanes + 1):
        m = whole_tiles_and_a_rest(device, n, 10, ta, tb)
        for scale in ((1.0, 0.0), (-0.5, 2.0)):
            check(rng, device, np.float32, m, n, 10, ta, tb, scale=scale, padded=n % 2 == 0)


def whole_tiles_and_a_rest(device, n, k, ta=False, tb=False):
    """Rows of C that fill two of the tiles in use, and a part of a third."""
    return 2 * chosen(device, Shape(7, n, k, np.float32, ta, tb)).mr + 1


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 7), (5, 0, 7), (0, 0, 0), (5, 7, 0), (1, 1, 1), (1, 1, 0)])
def test_empty_and_single(rng, device, engine, m, n, k):
    check(rng, device, np.float32, m, n, k)
    check(rng, device, np.float32, m, n, k, scale=(2.0, 0.5))
    check(rng, device, np.float32, m, n, k, bias=True)
    check(rng, device, np.float32, m, n, k, ta=True, scale=(2.0, 0.5), sums=(0.5, 2.0))


@pytest.mark.platform
@pytest.mark.parametrize("padded", [False, True])
def test_forward_epilogue(rng, device, engine, padded):
    """Bias, activation and the kept input, as linear() asks for them, by each tile that it can meet."""
    for m, n, k in ((7, 5, 9), (66, 67, 33)):
        check(rng, device, np.float32, m, n, k, bias=True, act="gelu", keep=True, padded=padded)
    check(rng, device, np.float32, 3, 1300, 811, bias=True, act="tanh", padded=padded)


@pytest.mark.platform
@pytest.mark.parametrize(("bias", "keep"), [(True, True), (True, False), (False, True), (False, False)])
def test_epilogue_in_its_order(rng, device, engine, bias, keep):
    """Everything at once, f(alpha A B + beta C + bias), and each part left out, on whole tiles and on parts of one."""
    lanes = device.vector_width(np.float32)
    for n in (lanes - 1, 2 * lanes, 2 * lanes + 3):
        for m in (whole_tiles_and_a_rest(device, n, 12), 3):
            check(rng, device, np.float32, m, n, 12, scale=(0.5, -2.0), bias=bias, act="gelu", keep=keep)


@pytest.mark.platform
@pytest.mark.parametrize("scale", [(1.0, 0.0), (1.0, 1.0)])
def test_times_a_derivative(rng, device, engine, scale):
    """dx = dy w^T f'(saved), assigned or added; 300 deep takes two steps of the blocked kernel."""
    for m, n, k in ((5, 9, 7), (70, 130, 20), (33, 130, 300)):
        check(rng, device, np.float32, m, n, k, tb=True, act="gelu", times=True, scale=scale)


@pytest.mark.platform
def test_sums_beside_the_product(rng, device, engine):
    """dw and db in one launch, each with its own alpha and beta."""
    for m, n, k in ((9, 5, 33), (33, 67, 12), (1, 1, 1)):
        check(rng, device, np.float32, m, n, k, ta=True, scale=(1.0, 0.5), sums=(-0.5, 0.0))
        check(rng, device, np.float32, m, n, k, ta=True, scale=(1.0, 0.0), sums=(2.0, 1.0))


def test_sums_of_two_tables(rng, device, engine):
    """Where the product and its sums read different tables they are launched apart."""
    dy, sums = normal(rng, (11, 6)), pair(device, np.float32, 2.0, 0.0)
    x, out, total = normal(rng, (11, 4)), device.allocate(4 * 24), device.allocate(4 * 6)
    gemm(device, Product(
        Shape(4, 6, 11, transpose_a=True), exact(device, x, np.float32), exact(device, dy, np.float32), out,
        scale=pair(device, np.float32, 1.0, 0.0), sums=(total, sums),
    ))  # fmt: skip
    assert_close(device.read(out, np.empty((4, 6), np.float32)), x.T @ dy, 1e-5)
    assert_close(device.read(total, np.empty(6, np.float32)), 2 * dy.sum(axis=0), 1e-5)


@pytest.mark.platform("epilogue")
@pytest.mark.parametrize("rows", [0, 1, 37])
def test_column_sums(rng, device, rows):
    x = normal(rng, (rows, 9))
    out = Matrix(device, np.full((1, 9), np.nan), np.float32)
    column_sums(
        device, 9, rows, exact(device, x, np.float32), (out.block, pair(device, np.float32, -1.0, 0.0)), np.float32
    )
    assert_close(out.read()[0], -x.sum(axis=0), (rows + 1) * eps(np.float32) * (1 + np.abs(x).sum(axis=0)))


@pytest.mark.platform
@pytest.mark.oclgrind
@pytest.mark.parametrize("ordered", [False, True])
def test_rows_where_they_lie(rng, device, engine, ordered):
    """A mini-batch is read in the data set: forward from the first row in state[0], backward from the one in state[2]."""
    data, first, w, dy = normal(rng, (40, 9)), (11, 5), normal(rng, (9, 7)), normal(rng, (13, 7))
    order = rng.permutation(40) if ordered else np.arange(40)
    source, state = exact(device, data, np.float32), exact(device, np.array([first[0], -1, first[1]]), np.int32)
    rows = RowsOf(source, exact(device, order, np.int32) if ordered else None, state)
    y, dw = device.allocate(4 * 13 * 7), device.allocate(4 * 9 * 7)
    gemm(device, Product(Shape(13, 7, 9), source, exact(device, w, np.float32), y, rows=rows))
    gemm(device, Product(Shape(9, 7, 13, transpose_a=True), source, exact(device, dy, np.float32), dw, rows=rows))
    x, x_backward = (data[order[at : at + 13]] for at in first)
    assert_close(device.read(y, np.empty((13, 7), np.float32)), x @ w, 16 * eps(np.float32) * 10)
    assert_close(device.read(dw, np.empty((9, 7), np.float32)), x_backward.T @ dy, 16 * eps(np.float32) * 10)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(rng, device, engine, value):
    """What is not finite reaches its row or its column, as in NumPy, and nothing else."""
    a, b = normal(rng, (6, 5)), normal(rng, (5, 7))
    a[2, 3], b[1, 4] = value, value
    out = device.allocate(4 * 42)
    gemm(device, Product(Shape(6, 7, 5), exact(device, a, np.float32), exact(device, b, np.float32), out))
    with np.errstate(invalid="ignore"):
        assert_close(device.read(out, np.empty((6, 7), np.float32)), a @ b, 20 * eps(np.float32) * 10)


def test_the_same_bits_again(rng, device, engine):
    """The order of summation does not change from call to call."""
    a, b, out = exact(device, normal(rng, (67, 130)), np.float32), exact(device, normal(rng, (130, 67)), np.float32), []
    for _ in range(3):
        c = device.allocate(4 * 67 * 67)
        gemm(device, Product(Shape(67, 67, 130), a, b, c))
        out.append(device.read(c, np.empty(67 * 67, np.float32)).tobytes())
    assert out[0] == out[1] == out[2]


@pytest.mark.oclgrind
def test_as_on_a_gpu(rng, device, monkeypatch):
    """The tile of GPUs, in groups of 8 x 8 work-items, runs on any device."""
    if device.max_group < 64:
        pytest.skip("work-groups of 64 do not fit")
    monkeypatch.setenv("CLNN_GEMM", "tile")
    monkeypatch.setattr(device, "kind", "gpu")
    for m, n, k in ((1, 1, 1), (5, 9, 3), (37, 35, 12)):
        check(rng, device, np.float32, m, n, k, ta=True, scale=(0.5, 1.0), sums=(1.0, 0.0), padded=True)
        check(rng, device, np.float32, m, n, k, tb=True, padded=True)


@pytest.mark.oclgrind
@pytest.mark.parametrize(("ta", "tb"), [(False, False), (True, False), (False, True), (True, True)])
def test_copies_in_local_memory(rng, device, monkeypatch, ta, tb):
    """Operands copied 24 deep, on products smaller than that is chosen for."""
    monkeypatch.setenv("CLNN_GEMM", "tile")
    as_a_cpu(device, monkeypatch)
    monkeypatch.setattr(tile, "MOST_ROWS", 16)
    monkeypatch.setattr(tile, "SMALL", 1 << 10)
    monkeypatch.setattr(tile, "ALONE", 1)
    monkeypatch.setattr(tile, "choose", lambda *_: tile.Tile(8, 2, 4, 24))
    for m, n, k in ((1, 1, 1), (19, 37, 50), (16, 32, 24)):
        check(rng, device, np.float32, m, n, k, ta, tb, scale=(0.5, 2.0), bias=True, act="gelu", keep=True, padded=True)


def test_copies_that_do_not_fit_local_memory_are_not_made(rng, device, monkeypatch):
    """A local array of no elements ends the process in drivers that go through SPIR-V."""
    launched, launch = [], type(device).launch
    monkeypatch.setattr(type(device), "launch", lambda self, *a, **how: launched.append(how) or launch(self, *a, **how))
    monkeypatch.setenv("CLNN_GEMM", "tile")
    monkeypatch.setattr(device, "local_memory", 4096)
    monkeypatch.setattr(tile, "choose", lambda *_: tile.Tile(4, 1, 4, 64))
    check(rng, device, np.float32, 9, 37, 50, False, True, padded=True)
    assert any("TB" in how for how in launched) and not any("NC" in how for how in launched)


@pytest.mark.oclgrind
def test_few_rows(rng, device, monkeypatch):
    """Single samples: long runs of B, cut along N and along K, with a few of its rows left over."""
    monkeypatch.setenv("CLNN_GEMM", "tile")
    as_a_cpu(device, monkeypatch)
    monkeypatch.setattr(tile, "MOST_RUN", 64 * 8)
    monkeypatch.setattr(tile, "DEEP", 16)
    monkeypatch.setattr(tile, "SMALL", 8)
    monkeypatch.setattr(tile, "ALONE", 1)
    monkeypatch.setattr(tile, "choose", lambda _, shape, *more: tile.Tile(shape.m, 1, 4, row=True))
    for m, n, k in ((1, 1, 1), (3, 64, 3), (1, 70, 6), (2, 200, 37), (3, 129, 100)):
        check(rng, device, np.float32, m, n, k, scale=(0.5, 2.0), bias=True, act="gelu", keep=True, padded=True)
        check(rng, device, np.float32, m, n, k, act="gelu", times=True, padded=True)


def test_few_rows_as_they_are_chosen(rng, device, dtype, monkeypatch):
    """A layer that is large enough for them."""
    monkeypatch.setenv("CLNN_GEMM", "tile")
    if device.long_loops:
        assert chosen(device, Shape(3, 515, 517)).row
    for m in (1, 2, 3, 4):
        check(rng, device, dtype, m, 515, 517, bias=True, act="relu", padded=True)
    check(rng, device, dtype, 1, 5000, 60, bias=True)


@pytest.mark.parametrize("ta", [False, True])
def test_a_deep_product_in_place(rng, device, monkeypatch, ta):
    """Operands that are not copied are gone through in steps of K; the epilogue comes with the last one."""
    monkeypatch.setenv("CLNN_GEMM", "tile")
    as_a_cpu(device, monkeypatch)
    monkeypatch.setattr(tile, "UNBROKEN", 16)
    monkeypatch.setattr(tile, "DEEP", 8)
    monkeypatch.setattr(tile, "choose", lambda *_: tile.Tile(5, 2, 4))
    for m, n, k in ((1, 1, 0), (1, 1, 17), (19, 37, 50), (16, 32, 24)):
        check(rng, device, np.float32, m, n, k, ta, scale=(0.5, 2.0), bias=True, act="gelu", keep=True, padded=True)
        check(rng, device, np.float32, m, n, k, ta, scale=(1.0, 1.0), sums=(0.5, 1.0), padded=True)


@pytest.mark.oclgrind
@pytest.mark.parametrize(
    ("ta", "tb"),
    [
        pytest.param(False, False, marks=pytest.mark.slow),
        (True, False),
        (False, True),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_groups_of_a_gpu(rng, device, monkeypatch, ta, tb):
    """Work-groups that stage their operands, with tiles that hang over every edge, and K split."""
    monkeypatch.setenv("CLNN_GEMM", "tile")
    monkeypatch.setattr(device, "kind", "gpu")
    if device.max_group < 256:
        pytest.skip("small work-groups")
    monkeypatch.setattr(tile, "choose", lambda *_: tile.Tile(2, 2, 4, 16, local=True))
    for m, n, k in ((1, 1, 1), (33, 70, 17), (5, 200, 70)):
        check(rng, device, np.float32, m, n, k, ta, tb, scale=(0.5, 2.0), bias=True, act="gelu", keep=True, padded=True)
    if ta and not tb:
        check(rng, device, np.float32, 33, 70, 17, ta, scale=(1.0, 1.0), sums=(0.5, 1.0))


@pytest.mark.platform("gemm")
@pytest.mark.oclgrind
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_split_along_k(rng, device, monkeypatch, kind):
    """Few elements of C and a deep K: several work-items share a tile, and a second launch adds their parts."""
    monkeypatch.setenv("CLNN_GEMM", "tile")
    monkeypatch.setattr(device, "kind", kind)
    monkeypatch.setattr(tile, "SMALL", 1)
    monkeypatch.setattr(tile, "ALONE", 1)
    monkeypatch.setattr(tile, "DEEP", 16)
    monkeypatch.setattr(device, "compute_units", 100)
    for m, n, k in ((1, 1, 50), (5, 9, 70), (2, 20, 33)):
        assert tile.share(device, Shape(m, n, k), chosen(device, Shape(m, n, k))).parts > 1
        check(rng, device, np.float32, m, n, k, scale=(0.5, 2.0), bias=True, act="gelu", keep=True, padded=True)
        check(rng, device, np.float32, m, n, k, ta=True, scale=(1.0, 1.0), sums=(0.5, 1.0), padded=True)
        check(rng, device, np.float32, m, n, k, tb=True, act="gelu", times=True)


def chosen(device, shape):
    """The tile that a product of that shape gets."""
    return tile.choose(device, shape, tuning.find(device, shape).tile)


# -- which engine -----------------------------------------------------------------------------------------------------
def test_choice_of_engine(device, monkeypatch):
    monkeypatch.setenv("CLNN_GEMM", " Tile ")
    assert engine_name(device) == "tile"
    monkeypatch.delenv("CLNN_GEMM")
    monkeypatch.setattr(clblast, "problem", lambda *_: "")
    as_a_cpu(device, monkeypatch)
    assert engine_name(device) == "tile"
    monkeypatch.setattr(device, "kind", "gpu")
    assert engine_name(device) == "clblast"
    monkeypatch.setattr(clblast, "problem", lambda *_: "CLBlast is not well")
    assert engine_name(device) == "tile"
    monkeypatch.setenv("CLNN_GEMM", "clblast")
    with pytest.raises(clnn.DeviceError, match="CLBlast is not well.*CLNN_GEMM"):
        engine_name(device)


def test_wrong_engine(device, monkeypatch):
    monkeypatch.setenv("CLNN_GEMM", "cublas")
    with pytest.raises(clnn.ConfigurationError, match="'cublas' is no GEMM engine; there are clblast and tile"):
        clnn.ones((2, 2)) @ clnn.ones((2, 2))


def test_engines_are_really_used(rng, device, engine, monkeypatch):
    """CLNN_GEMM decides whose code multiplies."""
    used = []
    for name, module in (("tile", tile), ("clblast", clblast)):
        run = module.run
        monkeypatch.setattr(module, "run", lambda *args, run=run, name=name: (used.append(name), run(*args)))
    check(rng, device, np.float32, 5, 6, 7)
    assert used == [engine]


# -- CLBlast ----------------------------------------------------------------------------------------------------------
needs_clblast = pytest.mark.skipif(not clblast.available(), reason="pyclblast cannot be imported")


@pytest.fixture
def self_tests(device, monkeypatch, tmp_path):
    """A cache of self-tests of its own, and how often one ran."""
    monkeypatch.setenv("CLNN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(clblast, "_problems", {})
    ran = []
    test = clblast._self_test
    monkeypatch.setattr(clblast, "_self_test", lambda d: ran.append(d) or test(d))
    return ran, tmp_path / "clblast-self-test.json"


@needs_clblast
def test_self_test_is_remembered(device, self_tests, monkeypatch):
    ran, path = self_tests
    assert clblast_problem(device) == ""
    assert clblast_problem(device) == "" and len(ran) == 1
    assert list(json.loads(path.read_text()).values()) == [""]
    clblast._problems.clear()  # as in another process
    assert clblast_problem(device) == "" and len(ran) == 1
    for times, damaged in enumerate(("{ damaged", "[]", "[" * 99_999), 2):
        path.write_text(damaged)
        clblast._problems.clear()
        assert clblast_problem(device) == "" and len(ran) == times
    monkeypatch.setattr(type(device), "identity", property(lambda d: "another driver"))
    assert clblast_problem(device) == "" and len(ran) == 5


@needs_clblast
def test_self_test_finds_wrong_products(device, self_tests, monkeypatch):
    ran, path = self_tests
    multiply = clblast._multiply

    def does_one_of_a_batch(queue, a, b, c, dtype, p, value):
        multiply(queue, a, b, c, dtype, (*p[:8], 1, *p[9:]), value)

    monkeypatch.setattr(clblast, "_multiply", does_one_of_a_batch)
    assert "is wrong on" in clblast_problem(device)
    assert "is wrong on" in next(iter(json.loads(path.read_text()).values()))


@needs_clblast
@pytest.mark.parametrize("calls", [10_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_clblast_keeps_no_memory(device, calls, monkeypatch):
    """pyclblast alone keeps an event per call: 0.3 KB on PoCL, 6 KB on Intel's runtime."""
    if problem := clblast_problem(device):
        pytest.skip(problem)
    monkeypatch.setenv("CLNN_GEMM", "clblast")
    a, b, c = clnn.ones((8, 8)), clnn.ones((8, 8)), clnn.ones((8, 8))

    def run(times):
        for i in range(times):
            gemm(device, Product(Shape(8, 8, 8), a.block, b.block, c.block))
            if i % 100 == 0:
                device.finish()
        device.finish()
        return resident()

    run(2000)
    sizes = [run(calls // 5) for _ in range(6)]  # what is kept for each call shows between any two
    assert np.diff(sizes).min() / (calls // 5) < 100, "bytes a call"


def resident():
    """Bytes of memory that are this process's own, after what is free in its heap went back to the system."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = file.read().split()
    except (OSError, AttributeError):
        pytest.skip("needs glibc and Linux")
    return (int(pages[1]) - int(pages[2])) * 4096


def test_what_follows_a_product_that_its_engine_does_not_fuse(rng, device, monkeypatch):
    """Bias and activation in a launch of their own, each with and without the other, as after CLBlast's products."""
    monkeypatch.setenv("CLNN_GEMM", "clblast")
    monkeypatch.setattr(clblast, "problem", lambda *_: "")
    alone = {"bias": None, "activation": "linear", "saved": None, "derivative": False, "sums": None}
    monkeypatch.setattr(clblast, "run", lambda device, p: tile.run(device, p._replace(**alone)))
    for bias in (False, True):
        for act, keep in (("relu", False), ("gelu", True), ("linear", False)):
            check(rng, device, np.float32, 5, 70, 9, bias=bias, act=act, keep=keep)
    check(rng, device, np.float32, 5, 70, 9, True, scale=(-0.5, 2.0), sums=(0.25, 0.5))
