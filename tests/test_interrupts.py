"""Ctrl-C wherever it comes: afterwards nothing is held, and everything works as before."""

import dis
import itertools
import sys
import threading
import time

import numpy as np
import pytest

import clnn
from clnn.runtime import lock
from clnn.runtime.recording import Recording, Replays
from clnn.step import Step

X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)


def interruptions(act, functions):
    """Runs act() over and over, interrupted at another place of these functions each time, and yields after each, until it has
    come to its end. Python looks for Ctrl-C where a function begins and after each call."""
    codes = {one.__code__ for one in functions}
    for left in itertools.count():
        places, before = itertools.count(), {}

        def trace(frame, event, _, left=left, places=places, before=before):
            if frame.f_code not in codes:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            after = before.get(frame, "")
            before[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]] if event == "opcode" else ""
            if (event == "call" or event == "opcode" and after.startswith("CALL")) and next(places) == left:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        usual = sys.gettrace()
        sys.settrace(trace)
        try:
            act()
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(usual)
        yield left
    assert left


@pytest.mark.parametrize("kind", ["free", "held", "waited for"])
def test_no_lock_stays_behind(kind):
    one, threads = lock.FairLock(), []

    def act():
        if kind == "waited for":
            taken = threading.Event()
            threads.append(threading.Thread(target=hold, args=(taken,)))
            threads[-1].start()
            taken.wait()
        with one:
            if kind == "held":
                with one:
                    pass

    def hold(taken):
        with one:
            taken.set()
            time.sleep(0.005)

    def others():
        for each in (one, one.door):
            assert each.acquire(timeout=10)
            each.release()
        free.append(True)

    for _ in interruptions(act, (lock.FairLock.__enter__, lock.FairLock._wait)):
        free, other = [], threading.Thread(target=others)
        other.start()
        other.join()
        assert free and not lock._waiting and not one.mine()


def network():
    return clnn.Sequential([clnn.Dense(16, "relu"), clnn.Dense(3)], input_shape=8, seed=1)


def test_no_step_stays_under_way(device):
    """Eager, recorded, compared with its recording: in each call another place is interrupted."""
    with clnn.use(device):
        net, optimizer = network(), clnn.SGD(0.1)

        def act():
            @clnn.step
            def train(x, y):
                clnn.losses.mse(net(x), y).backward()
                optimizer.step(net.parameters())

            for _ in range(5):
                train(X, X[:, :3])

        for _ in interruptions(act, (type(device).recorder.fset, Step._audit, Replays.run)):
            assert device.step is None and device.recorder is None and not device.lock.mine()


def test_launches_are_bound_whole_or_anew(device):
    with clnn.use(device):
        net = network()
        f, want = net.compiled(6), net.predict(X)

        def act():
            f.recording.arena, f.recording.calls = None, []
            f(X)

        if f.recording is None:
            pytest.skip("it cannot be recorded here")
        parts = [Recording._bind, *([type(f.recording.fused).bind] if f.recording.fused else [])]
        for _ in interruptions(act, parts):
            np.testing.assert_array_equal(f(X), want)


def test_a_model_moves_whole_or_stays(device):
    with clnn.use(device):
        net = network()
        want = net.predict(X)
        for _ in interruptions(lambda: net.to(device), (clnn.Model.to, type(device).upload.__wrapped__)):
            np.testing.assert_array_equal(net.predict(X), want)
