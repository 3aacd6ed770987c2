"""Training on several ranks: what they compute against one rank, what differs, what fails, and that a world of one is free."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ranks

import clnn
from clnn.tools import mpi
from clnn.tools.mpi import share_of_cores

HERE = Path(__file__).resolve().parent
MPIRUN = shutil.which("mpirun", path=os.path.dirname(sys.executable)) or shutil.which("mpirun")
several = pytest.mark.skipif(
    MPIRUN is None or importlib.util.find_spec("mpi4py") is None, reason="needs pip install mpi4py mpich"
)
OPEN = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
THREE = ("momentum", "one_sample_left", "ignored_targets", "a_step_of_ones_own", "batch_norm", "ranks_that_differ")
RUN = [sys.executable, "-m", "clnn", "run-mpi", "-n", "2"]
MINUTE = 60  # within which every failure has to end all ranks


def command(n, *arguments):
    said = subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout
    options = OPEN if "Open MPI" in said or "PRRTE" in said else []
    return [MPIRUN, *options, "-n", str(n), sys.executable, str(HERE / "ranks.py"), *arguments]


def environment():
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "POCL_AFFINITY": "0"}


@pytest.fixture(scope="module")
def told(request):
    """What each case has said on each rank, by (ranks, case): all run in one program."""
    found = {}

    def tell(n, name):
        if n not in found:
            names = [*ranks.CASES] if n == 2 else THREE
            run = subprocess.run(command(n, *names), capture_output=True, text=True, env=environment(), timeout=600)
            lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
            found[n] = {}, run.stderr
            for line in lines:
                found[n][0].setdefault(line["case"], {})[line["rank"]] = line["error"]
        return found[n][0].get(name, {}), found[n][1]

    return tell


@pytest.fixture
def doubles():
    """Ranks compute in float64 here."""
    if not clnn.device().has_fp64:
        pytest.skip(f"{clnn.device()!r} has no float64")


@several
@pytest.mark.parametrize("n, name", [(2, name) for name in ranks.CASES] + [(3, name) for name in THREE])
def test_ranks(doubles, told, n, name):
    errors, stderr = told(n, name)
    assert errors == dict.fromkeys(range(n), ""), f"{errors}\n{stderr[-3000:]}"


@pytest.fixture
def hosts(tmp_path):
    """Two hosts, each a network namespace with an address of its own and a cable to the other; and what mpirun calls in place of
    ssh to start a program on one of them."""
    names = [f"clnn{os.getpid()}{end}" for end in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]

    def ip(*arguments):
        return subprocess.run(["ip", *arguments], capture_output=True, text=True)

    try:
        for name in names:
            if ip("netns", "add", name).returncode:
                pytest.skip("network namespaces cannot be made here")
        cable = ("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        if ip(*cable).returncode:
            pytest.skip("a pair of network devices cannot be made here")
        for name, address in zip(names, addresses):
            assert ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable").returncode == 0
            assert ip("-n", name, "link", "set", "lo", "up").returncode == 0
            assert ip("-n", name, "link", "set", "cable", "up").returncode == 0
        until = time.monotonic() + 10  # a device is up a moment after it was set so
        while not all("state UP" in ip("-n", name, "link", "show", "cable").stdout for name in names):
            assert time.monotonic() < until, "the cable does not come up"
            time.sleep(0.05)
        start = tmp_path / "start"
        start.write_text(
            "#!/bin/sh\nwhile case $1 in -*) true;; *) false;; esac; do shift; done\nhost=$1; shift\n"
            f"case $host in {addresses[0]}) name={names[0]};; *) name={names[1]};; esac\n"
            'exec ip netns exec "$name" sh -c "$*"\n'
        )
        start.chmod(0o755)
        yield names, addresses, start
    finally:
        for name in names:
            ip("netns", "del", name)


def test_the_launcher_of_windows_is_found(tmp_path, monkeypatch):
    """Its MPI comes with mpiexec alone, in a folder of the environment that need not be on the PATH."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(
        mpi.shutil,
        "which",
        lambda name, path=None: f"{path}/{name}" if "Library" in f"{path}" and name == "mpiexec" else None,
    )
    monkeypatch.setattr(mpi.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(
        mpi.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "Intel(R) MPI Library")
    )
    assert mpi.mpirun()[0].endswith("mpiexec") and len(mpi.mpirun()) == 1
    monkeypatch.setattr(mpi.shutil, "which", lambda *_, **__: None)
    with pytest.raises(clnn.errors.ConfigurationError, match="there is no mpirun here"):
        mpi.mpirun()


@several
@pytest.mark.skipif(shutil.which("ip") is None, reason="without ip, of iproute2")
def test_two_hosts(doubles, hosts):
    """Each rank reaches the other over the network alone, and both compute what one rank does."""
    (here, there), addresses, start = hosts
    if "HYDRA" not in subprocess.run([MPIRUN, "--version"], capture_output=True, text=True).stdout:
        pytest.skip("another mpirun than MPICH's is told of hosts in another way")
    where = f"-launcher ssh -launcher-exec {start} -localhost {addresses[0]} -hosts {','.join(addresses)}".split()
    names = ["momentum", "one_sample_left", "batch_norm"]
    program = [sys.executable, str(HERE / "ranks.py"), *names]
    # tcp: MPICH's UCX would see that both are one machine, and go through its memory
    run = subprocess.run(
        ["ip", "netns", "exec", here, MPIRUN, *where, "-n", "2", *program],
        capture_output=True, text=True, timeout=4 * MINUTE,
        env={**environment(), "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "cable"},
    )  # fmt: skip
    said = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(said) == 2 * len(names) and not any(one["error"] for one in said), f"{said}\n{run.stderr[-3000:]}"
    count = ["ip", "netns", "exec", there, "cat", "/sys/class/net/cable/statistics/rx_bytes"]
    received = int(subprocess.run(count, capture_output=True, text=True).stdout)
    assert received > 200_000, f"{received} bytes came over the network, which is no more than mpirun's own"


@several
@pytest.mark.parametrize(
    "which, words",
    [
        ("killed", "Killed"),
        ("hung", "for rank 1, which did not come"),
        ("stopped", "for rank 1, which did not come"),
        ("raised", "rank 1 of 2 has failed: KeyError: 'a fault'"),
        ("left", "rank 1 of 2 has failed: SystemExit"),
    ],
)
def test_a_rank_that_does_not_go_on_ends_all(doubles, which, words, tmp_path):
    began = time.monotonic()
    run = subprocess.run(
        command(2, "fault", which, "none"), capture_output=True, text=True, env=environment(), timeout=2 * MINUTE
    )
    assert run.returncode != 0 and words in run.stdout + run.stderr
    assert time.monotonic() - began < MINUTE


@several
def test_ctrl_c_leaves_a_checkpoint_that_goes_on_with_other_ranks(doubles, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*RUN, str(HERE / "ranks.py"), "fault", "interrupted", str(folder)],
        stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert json.loads(process.stdout.readline())["pid"]  # of rank 1, in its second epoch
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=MINUTE)
    assert process.returncode != 0
    before = int(max(folder.glob("epoch-*.safetensors")).stem.removeprefix("epoch-"))
    assert before >= 1
    history = ranks.trained(
        None, epochs=before + 1, optimizer=clnn.SGD(0.01, momentum=0.9), seed=1, batch_size=8, resume=folder
    )
    assert len(history["loss"]) == before + 1


@several
def test_the_example_goes_on_with_another_number_of_ranks(tmp_path):
    nobody = {"CLNN_DATA_DIR": "", "CLNN_CACHE_DIR": str(tmp_path / "cache"), "https_proxy": "http://127.0.0.1:9"}
    example = str(HERE.parent / "examples" / "mnist_mpi.py")
    for start, epochs, ranks_there in ((RUN, 2, 2), ([sys.executable], 3, 1)):
        run = subprocess.run(
            [*start, example, str(epochs)],
            capture_output=True, text=True, env={**environment(), **nobody}, cwd=tmp_path, timeout=4 * MINUTE,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        assert run.stdout.count("epoch ") == epochs and run.stdout.endswith(f"on {ranks_there} ranks\n")
        assert float(re.search(r"test set: ([\d.]+)%", run.stdout)[1]) > 60


@several
def test_a_search_on_ranks_finds_what_one_process_finds(device):
    arguments = command(3, "search")
    arguments[arguments.index(sys.executable) + 1 : -1] = ["-m", "mpi4py.futures", str(HERE / "ranks.py")]
    run = subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=2 * MINUTE)
    ranked, alone = json.loads(run.stdout)
    assert ranked == alone and len(alone) == 4 and len(alone[0][1]) > 1, run.stderr
    with pytest.raises(clnn.ConfigurationError, match=r"mpirun -n 4 python -m mpi4py\.futures"):
        ranks.searched("mpi")


@several
def test_run_mpi_names_who_ended_and_passes_the_status_on(tmp_path):
    script = tmp_path / "one.py"
    script.write_text(
        "import json, os, signal, sys, time\nfrom mpi4py import MPI\nrank = MPI.COMM_WORLD.rank\n"
        "cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else [rank]\n"
        "sys.stdout.write(json.dumps({'rank': rank, 'arguments': sys.argv[1:], 'cores': cores}) + chr(10))\n"
        "sys.stdout.flush()\nMPI.COMM_WORLD.Barrier()\n"
        "if rank and sys.argv[1] == '--die':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if rank == 0 and sys.argv[1] == '--die':\n    time.sleep(60)\nsys.exit(3 * rank)\n"
    )
    named = set()
    for argument in ("--leave", "--die", "--die", "--die"):
        if "1" in named:
            break
        run = subprocess.run(
            [*RUN, str(script), argument, "7"], capture_output=True, text=True, env=environment(), timeout=MINUTE
        )
        said = {one["rank"]: one for one in map(json.loads, (s for s in run.stdout.splitlines() if s.startswith("{")))}
        assert {one["arguments"][1] for one in said.values()} == {"7"} and len(said) == 2
        assert len(os.sched_getaffinity(0)) < 2 or not set(said[0]["cores"]) & set(said[1]["cores"])
        assert run.returncode == 3 if argument == "--leave" else run.returncode != 0
        if argument == "--die":  # a busy MPICH may hear first of one that it has ended itself
            named.add(
                re.search(
                    "rank ([01]) of 2 was killed, perhaps by mpirun once another one had ended, with status", run.stderr
                )[1]
            )
    assert "1" in named
    assert subprocess.run([*RUN, "none.py"], capture_output=True, env=environment()).returncode == 1


@pytest.mark.parametrize("cores, ranks, wanted", [(8, 2, 4), (7, 3, 2), (2, 2, 1), (2, 5, 1), (64, 6, 10)])
def test_each_rank_has_cores_of_its_own(cores, ranks, wanted):
    shares = [share_of_cores(range(cores), rank, ranks) for rank in range(ranks)]
    assert min(map(len, shares)) == wanted
    if cores >= ranks:
        assert sorted(core for share in shares for core in share) == list(range(cores))


def test_a_world_of_one_launches_what_none_does(device, rng):
    x, y = rng.standard_normal((53, 6)).astype(np.float32), rng.integers(0, 4, 53)
    world, found = clnn.distributed.World(None, 60.0), []
    for given in (None, world):
        net = clnn.Sequential([clnn.Dense(7, "tanh"), clnn.Dense(4)], input_shape=6, seed=0)
        optimizer, before = clnn.SGD(0.1, momentum=0.9), device.launches
        net.fit(
            x, y, loss="cross_entropy", optimizer=optimizer, epochs=6, batch_size=8, seed=1, validation=(x, y),
            progress=False, world=given,
        )  # fmt: skip
        steps = clnn.step(lambda: None)  # a step of one's own has the same launches, too
        optimizer.world = given
        found.append((device.launches - before, [p.numpy().tobytes() for p in net.parameters()], optimizer.plain))
        assert steps is not None
    assert found[0] == found[1]
    t = clnn.ones(3)
    assert world.sum(t) is t and world.mean(t, 2) is t and world.gather(4) == [4] and world.first(5) == 5


@pytest.mark.parametrize("n, batch, size", [(53, 4, 2), (49, 4, 2), (5, 8, 3), (2, 8, 3), (48, 4, 3), (1, 1, 2)])
def test_ranks_share_out_every_sample_once_in_the_order_of_one(n, batch, size):
    order, steps = np.random.default_rng(0).permutation(n), {}
    for rank in range(size):
        world = clnn.distributed.World(None, 60.0)
        world.rank, world.size = rank, size
        rows, at, step = world.order(order, batch), 0, 0
        for count, times, share in world.stretches(n, batch):
            for _ in range(times):
                part = rows[at : at + count]
                assert len(part) == count and 0 <= share <= 1
                steps.setdefault(step, []).append((part if share else part[:0], share))
                at, step = at + count, step + 1
        assert at == len(rows)
    assert len(steps) == -(-n // (batch * size))
    for step, parts in steps.items():
        together = np.concatenate([part for part, _ in parts])
        assert sorted(together) == sorted(order[step * batch * size : (step + 1) * batch * size])
        np.testing.assert_allclose([share for _, share in parts], [len(part) / len(together) for part, _ in parts])


def test_ranks_that_mpi4py_does_not_see_are_an_error(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(clnn.distributed, "_world", None)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(clnn.ConfigurationError, match=r"2 ranks .* pip install"):
        clnn.distributed.init()
    monkeypatch.delenv("PMI_SIZE")
    assert clnn.distributed.init().size == 1
    with pytest.raises(clnn.ConfigurationError, match="timeout"):
        clnn.distributed.init(timeout=0)
