"""Memory shared with arrays of PyOpenCL, both ways: what is shared, in which order, for how long, and what is refused."""

import functools
import gc
import weakref

import numpy as np
import pyopencl as cl
import pyopencl.array as cl_array
import pyopencl.tools as cl_tools
import pytest

import clnn

X = np.arange(24, dtype=np.float32).reshape(4, 6)


@functools.cache
def elsewhere(device):
    """Another context, which lives on: Intel's queues do not keep theirs alive."""
    return cl.Context([device.cl_device])


def theirs(device, x=X, queue=None, **options):
    return cl_array.to_device(queue or device.queue, x, **{"allocator": device.allocator, **options})


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.float64])
def test_an_array_becomes_a_tensor_over_the_same_memory_and_back(device, kind):
    if kind is np.float64 and not device.has_fp64:
        pytest.skip(f"{device!r} has no float64")
    array = theirs(device, X.astype(kind))
    t = clnn.from_pyopencl(array)
    assert t.shape == X.shape and t.dtype == kind and t.device is device
    array += 1
    assert np.array_equal(t.numpy(), X + 1) and np.array_equal((t * 2 - t).numpy(), X + 1)
    back = t.to_pyopencl()
    back.fill(7)
    assert back.queue == device.queue and (t.numpy() == 7).all() and (array.get() == 7).all()
    y = t + t
    ours = y.to_pyopencl()
    ours *= ours
    assert (y.numpy() == 14 * 14).all() and np.array_equal((y + 0).numpy(), ours.get())
    assert clnn.from_pyopencl(ours + 1).shape == X.shape, "what comes of such an array can be shared, too"
    copy = y.to_pyopencl(copy=True)
    copy.fill(0)
    assert (y.numpy() == 14 * 14).all()


def test_kernels_compute_on_shared_memory_whatever_lies_behind_it(device, rng):
    """Odd sizes, in the middle of a buffer that is NaN elsewhere."""
    x, w = rng.normal(size=(5, 37)).astype(np.float32), rng.normal(size=(37, 3)).astype(np.float32)
    start = -(-256 // device.alignment) * device.alignment // 4
    whole = np.full(start + x.size + 64, np.nan, np.float32)
    whole[start : start + x.size] = x.ravel()
    part = cl_array.to_device(device.queue, whole)[start : start + x.size].reshape(x.shape)
    t = clnn.from_pyopencl(part)
    np.testing.assert_allclose((t @ w).numpy(), x @ w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(t.sum(axis=1).numpy(), x.sum(axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(clnn.softmax(t).numpy().sum(axis=1), 1, rtol=1e-5)
    assert np.array_equal(t.to_pyopencl().get(), x)
    p = clnn.tensor(t, requires_grad=True)
    (p * t).sum().backward()
    assert np.array_equal(p.grad.numpy(), x)


def refused(device, how):
    other, flags = cl.CommandQueue(elsewhere(device)), cl.mem_flags
    pool = cl_tools.MemoryPool(cl_tools.ImmediateAllocator(device.queue))
    room = np.zeros(200, np.float32)
    return {
        "another context": lambda: theirs(device, queue=other, allocator=None),
        "holds int64": lambda: theirs(device, X.astype(np.int64)),
        "holds float16": lambda: theirs(device, X.astype(np.float16)),
        "strides of": lambda: theirs(device)[:, 1:4],
        r"strides of \(4, ": lambda: theirs(device, np.asfortranarray(X)),
        "behind an array; allocate it with": lambda: theirs(device, allocator=None),
        "no multiple of the device's": lambda: theirs(device, room)[1:40],
        "mem_flags": lambda: cl_array.Array(
            device.queue, 24, np.float32,
            data=cl.Buffer(device.context, flags.READ_ONLY | flags.COPY_HOST_PTR, hostbuf=room),
        ),
        "in another queue": lambda: theirs(device, room, cl.CommandQueue(device.context), allocator=pool)[:24],
    }[how]()  # fmt: skip


@pytest.mark.parametrize("how", ["another context", "holds int64", "holds float16", "strides of", r"strides of \(4, ",
                                 "behind an array; allocate it with", "no multiple of the device's", "mem_flags",
                                 "in another queue"])  # fmt: skip
def test_what_cannot_be_shared_is_refused_or_copied(device, how):
    array = refused(device, how)
    with pytest.raises(clnn.DataError, match=f"cannot share this array: .*{how}.*give copy=True"):
        clnn.from_pyopencl(array)
    t = clnn.from_pyopencl(array, copy=True)
    kept = t.numpy()
    assert t.dtype == {"int64": np.int32}.get(how[6:], np.float32)
    if "strides" not in how:
        assert np.array_equal(kept, array.get())
        cl.enqueue_fill_buffer(array.queue, array.base_data, np.int32(5), 0, array.nbytes)
    else:
        assert np.array_equal(kept, X[:, 1:4] if how == "strides of" else X)
    assert np.array_equal(t.numpy(), kept)


def test_other_things_are_refused(device):
    for wrong in (X, X.tolist(), clnn.tensor(X), None):
        with pytest.raises(clnn.DataError, match="takes a pyopencl.array.Array"):
            clnn.from_pyopencl(wrong)
    array = theirs(device)
    for use in (clnn.tensor, clnn.Sequential([clnn.Dense(2)], input_shape=6).predict, lambda a: clnn.tensor(X) + a):
        with pytest.raises(clnn.DataError, match=r"PyOpenCL.*clnn.from_pyopencl"):
            use(array)
    with pytest.raises(clnn.ClnnError, match="another context"):
        clnn.tensor(X).to_pyopencl(cl.CommandQueue(elsewhere(device)))


@pytest.mark.parametrize("shape", [(), (0, 3), (1,)])
def test_small_shapes(device, shape):
    x = np.full(shape, 3, np.float32)
    t = clnn.from_pyopencl(cl_array.to_device(device.queue, x, allocator=device.allocator))
    assert t.shape == shape and np.array_equal(t.numpy(), x)
    array = (t * 2).to_pyopencl()
    assert array.shape == shape and (not x.size or array.get() == 6)


def test_what_clnn_writes_again_is_not_given_away(device):
    net = clnn.Sequential([clnn.Dense(6), clnn.BatchNorm(), clnn.SimpleRNN(3, stateful=True)], input_shape=(2, 6))
    lone = clnn.tensor(X, requires_grad=True)
    (lone * 2).sum().backward()
    out = net(X.reshape(2, 2, 6))
    out.sum().backward()
    weights = [*net.parameters(), lone]
    carried = net.layers[-1].carried
    for one in (
        *weights,
        *(p.detach() for p in weights),
        lone.reshape(-1).detach(),
        lone.grad,
        weights[0].grad,
        *carried,
    ):
        with pytest.raises(clnn.ClnnError, match="clnn writes into it again"):
            one.to_pyopencl()
        array, before = one.to_pyopencl(copy=True), one.numpy()
        array.fill(0)
        assert np.array_equal(one.numpy(), before)
    with pytest.raises(clnn.ClnnError, match="takes no gradient back"):
        out.to_pyopencl()


def test_within_a_step_nothing_is_shared_and_what_comes_of_one_is(device):
    kept = {}

    @clnn.step
    def double(x):
        kept["input"], kept["inside"] = x, x * 2
        return kept["inside"] + 1

    arrays = []
    for i in range(5):  # eager, recorded twice, replayed
        y = double(X + i)
        arrays.append(y.to_pyopencl())
    assert all(np.array_equal(array.get(), 2 * (X + i) + 1) for i, array in enumerate(arrays))
    for name in kept:
        with pytest.raises(clnn.ClnnError, match="clnn writes into it again"):
            kept[name].to_pyopencl()
    array = theirs(device)
    for inside in (clnn.Tensor.to_pyopencl, lambda x: x.to_pyopencl(copy=True), lambda x: clnn.from_pyopencl(array),
                   lambda x: clnn.from_pyopencl(array, copy=True)):  # fmt: skip
        with pytest.raises(clnn.ClnnError, match="outside of steps"):
            clnn.step(inside)(X)


def test_a_replay_reads_what_was_written_into_a_shared_array(device):
    array = theirs(device)
    t = clnn.from_pyopencl(array)
    add = clnn.step(lambda x: x + t)
    for i in range(6):
        array.fill(i)
        assert (add(np.zeros((4, 6), np.float32)).numpy() == i).all()


def test_two_queues_wait_for_each_other_when_memory_is_handed_over(device):
    queue = cl.CommandQueue(device.context)
    large = np.ones(1 << 18, np.float32)
    for i in range(8):
        array = theirs(device, large, queue=queue)
        for _ in range(20):
            array = array + 1
        t = clnn.from_pyopencl(array)
        for _ in range(20):
            t = t + 1
        out = t.to_pyopencl(queue)
        assert out.queue == queue
        out += 1
        queue.finish()
        assert (t.numpy() == 42).all(), i


def test_memory_lives_as_long_as_either_side_uses_it(device):
    for pooled in (False, True):
        allocator = cl_tools.MemoryPool(cl_tools.ImmediateAllocator(device.queue)) if pooled else device.allocator
        start = device.alignment // 4 if pooled else 0
        room = np.concatenate([np.zeros(start, np.float32), X.ravel(), np.zeros(1000, np.float32)])
        array = theirs(device, room, allocator=allocator)[start : start + 24]
        t = clnn.from_pyopencl(array)
        base = weakref.ref(array)
        del array
        gc.collect()
        assert base() is None
        for _ in range(4):
            theirs(device, room + 1, allocator=allocator)  # it would be given this memory
        assert np.array_equal(t.numpy(), X.ravel())

    y = clnn.tensor(X) * 3
    part = y.to_pyopencl()[2:]
    del y
    gc.collect()
    for _ in range(4):
        clnn.tensor(X) * 5
    assert np.array_equal(part.get(), 3 * X[2:])
    in_use = device.memory_in_use
    t = clnn.from_pyopencl(theirs(device))
    assert device.memory_in_use == in_use, "their memory is not clnn's"
