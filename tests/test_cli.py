"""The command line: what it prints, and its exit codes. Each run is a process of its own, as a user starts it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import clnn
from clnn.tools import cli
from clnn.tools.bench.run import WORKLOADS


def run(*arguments, **variables):
    """(exit code, stdout, stderr) of `python -m clnn ...`; a variable set to None is unset."""
    environ = {name: value for name, value in {**os.environ, **variables}.items() if value is not None}
    command = [sys.executable, "-m", "clnn", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, env=environ)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def no_driver(folder):
    """Variables with which the loader finds no driver, or skips the test where it has one of its own."""
    variables = {"OCL_ICD_VENDORS": str(folder), "OCL_ICD_FILENAMES": None, "CLNN_DEVICE": None, "PYOPENCL_CTX": None}
    if run("devices", **variables)[0] == 0:
        pytest.skip("this loader has a driver of its own, whatever OCL_ICD_VENDORS says")
    return variables


# -- devices -----------------------------------------------------------------------------------------------------------
def test_devices_lists_all_and_marks_the_one_in_use():
    code, out, err = run("devices", CLNN_DEVICE=None, PYOPENCL_CTX=None)
    assert (code, err) == (0, "")
    table, sentence = out.rstrip().split("\n\n")
    assert len(table.splitlines()) == 1 + len(clnn.devices())
    for one in clnn.devices():
        assert f"{one.platform_index}:{one.device_index}  " in table and one.name in table
    assert len(re.findall(r"^\*", table, re.M)) == 1 and "by default" in sentence


@pytest.mark.parametrize("name", ["CLNN_DEVICE", "PYOPENCL_CTX"])
def test_devices_says_which_variable_chose(name):
    last = clnn.devices()[-1]
    where = f"{last.platform_index}:{last.device_index}"
    code, out, _ = run("devices", **{"CLNN_DEVICE": None, "PYOPENCL_CTX": None, name: where})
    assert code == 0
    assert re.search(rf"^\*  {where} ", out, re.M)
    assert f"{where} is used, because {name} is '{where}'" in out


def test_devices_with_a_name_that_matches_nothing():
    code, out, err = run("devices", CLNN_DEVICE="abacus")
    assert (code, out) == (1, "")
    assert err.startswith("clnn: CLNN_DEVICE 'abacus' matches no OpenCL device") and clnn.devices()[0].name in err


@pytest.mark.skipif(sys.platform == "win32", reason="no broken pipes")
@pytest.mark.parametrize("closed", ["by its reader", "from the start"])
def test_output_that_nobody_reads(closed):
    """As with `clnn devices | head -0` and `clnn devices >&-`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = f"exec {sys.executable} -m clnn devices" + (" >&-" if closed == "from the start" else "")
    done = subprocess.run(["sh", "-c", command], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0 if closed == "from the start" else 141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no file that is always full")
@pytest.mark.parametrize("command", ["devices", "--help", "--version", "reproduce --list", "train --help"])
def test_output_on_a_full_disk(command):
    """A traceback, or with --help an exception that Python ignored."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "clnn", *command.split()], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1 and re.fullmatch(r"clnn: the output cannot be written: .*No space.*\n", done.stderr)


def test_devices_without_any_says_how_to_get_one(tmp_path):
    code, _, err = run("devices", **no_driver(tmp_path))
    assert code == 1 and "There is no OpenCL device" in err and "pocl-opencl-icd" in err


# -- doctor ------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_doctor_finds_this_machine_well():
    code, out, _ = run("doctor", CLNN_GEMM=None)
    assert code == 0, out
    assert "PROBLEM" not in out and out.endswith("clnn works here.\n")
    assert f"clnn {clnn.__version__}" in out and "the one in use" in out and "clnn multiplies matrices right" in out


def test_doctor_without_a_device(tmp_path):
    code, out, _ = run("doctor", **no_driver(tmp_path))
    assert code == 1
    assert "PROBLEM  There is no OpenCL device" in out and "-> A driver is installed" in out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells drivers to the loader by files")
def test_doctor_names_a_driver_that_is_not_there(tmp_path):
    (tmp_path / "gone.icd").write_text("/nowhere/libgone.so\n")
    _, out, _ = run("doctor", OCL_ICD_VENDORS=str(tmp_path))
    assert re.search(r"note +\S*gone.icd names /nowhere/libgone.so, which does not load: .*cannot open", out)


@pytest.mark.skipif(sys.platform != "linux", reason="the loader's path is read in /proc")
def test_doctor_names_the_loader_and_what_it_does_not_read(tmp_path):
    _, out, _ = run("doctor", OCL_ICD_FILENAMES=str(tmp_path / "libx.so"))
    used = re.search(r"the OpenCL loader is (.*libOpenCL\S*); it reads (.*)", out)
    assert used, out
    library = Path(used.group(1).split(", ")[1]).read_bytes()
    for name in ("OCL_ICD_VENDORS", "OCL_ICD_FILENAMES"):
        assert (name.encode() in library) == (name in used.group(2))
    ignored = "OCL_ICD_FILENAMES is set, and this loader does not read it" in out
    assert ignored != (f"OCL_ICD_FILENAMES names {tmp_path}" in out) == (b"OCL_ICD_FILENAMES" in library)


CARDS = [  # vendor, kernel driver, files that may not be opened, what is said, what to do
    ("0x1002", "amdgpu", (), "AMD's card (driver amdgpu) has no OpenCL device", "rocm-opencl"),
    ("0x8086", "i915", (), "Intel's card (driver i915) has no OpenCL device", "intel-opencl-icd"),
    ("0x10de", "nouveau", (), "Nvidia's card (driver nouveau) has no OpenCL device", "Nvidia's own driver"),
    ("0x1002", "amdgpu", ("renderD128",), "this user may not open", "usermod -aG render,video"),
    ("0x1af4", "virtio-pci", (), "no graphics card by AMD, Intel or Nvidia is seen", ""),
]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux' /sys")
@pytest.mark.parametrize(("vendor", "driver", "closed", "text", "remedy"), CARDS)
def test_doctor_looks_for_cards(tmp_path, monkeypatch, vendor, driver, closed, text, remedy):
    from clnn.tools import doctor, drivers

    device = tmp_path / "sys/class/drm/card0/device"
    (device / "drm/renderD128").mkdir(parents=True)
    (device.parent.parent / "card0-HDMI-A-1").mkdir()
    (device / "vendor").write_text(vendor + "\n")
    (tmp_path / "drivers" / driver).mkdir(parents=True)
    (device / "driver").symlink_to(tmp_path / "drivers" / driver)
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/dri/renderD128").touch()
    monkeypatch.setattr(drivers, "_closed", lambda file: file.name in closed)
    monkeypatch.setattr(doctor, "cards_here", lambda: drivers.cards(tmp_path))
    monkeypatch.setattr(doctor, "_ask", lambda *_: ([{"devices": [{"kind": "cpu", "text": "amd intel nvidia"}]}], ""))
    (found,) = doctor.cards()
    assert text in found.text and remedy in found.remedy and bool(remedy) == (found.verdict == doctor.NOTE)
    names = {"amdgpu": "gfx1100", "i915": "Intel(R) Arc", "nouveau": "NVIDIA RTX"}
    if driver in names and not closed:
        gpu = {"kind": "gpu", "text": names[driver]}
        monkeypatch.setattr(doctor, "_ask", lambda *_: ([{"devices": [gpu]}], ""))
        (found,) = doctor.cards()
        assert found.verdict == doctor.OK and "has an OpenCL device" in found.text


def test_doctor_in_wsl(tmp_path, monkeypatch):
    from clnn.tools import doctor, drivers

    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/dxg").touch()
    monkeypatch.setattr(doctor, "cards_here", lambda: drivers.cards(tmp_path))
    monkeypatch.setattr(doctor, "_ask", lambda *_: ([{"devices": []}], ""))
    (found,) = doctor.cards()
    assert found.verdict == doctor.NOTE and "/dev/dxg" in found.text and "WSL" in found.remedy


def test_doctor_names_bad_variables(tmp_path):
    variables = {"CLNN_DEVISE": "gpu", "CLNN_GEMM": "blas", "CLNN_DATA_DIR": str(tmp_path / "none")}
    code, out, _ = run("doctor", CLNN_CACHE_DIR=str(tmp_path), **variables)
    assert code == 1
    assert "CLNN_DEVISE is no variable of clnn's" in out
    assert "CLNN_GEMM='blas' is no GEMM engine" in out
    assert "which is no folder" in out and f"{tmp_path} can be written" in out


@pytest.mark.parametrize(("name", "value"), [("CLNN_FUSE", "maybe"), ("CLNN_WINOGRAD", "1"), ("CLNN_DEBUG", "yes")])
def test_doctor_names_a_value_that_training_would_refuse(device, monkeypatch, name, value):
    from clnn.tools import doctor

    monkeypatch.setenv(name, value)
    answers, wrong = doctor._ask("try", f"{device.platform_index}:{device.device_index}")
    assert not wrong and name in answers[-1]["problem"] and f"{value!r}" in answers[-1]["problem"]


def test_doctor_outlives_a_crash_and_a_hang(monkeypatch):
    from clnn.tools import doctor

    assert "signal 6" in doctor._run("-c", "import os; os.abort()") or sys.platform == "win32"
    assert doctor._run("-c", "import time; time.sleep(60)", seconds=0.5) == "no answer after 0.5 s"
    assert doctor._run("-c", "import sys; sys.exit('it is broken')") == "it is broken"

    answers = {
        ("list",): ([{"devices": [{"index": "0:0", "used": True, "name": "X", "text": "0:0 gpu X"}], "error": ""}], ""),
        ("try", "0:0"): ([{"stage": "opened", "text": ""}], "the process was ended by signal 11"),
    }
    monkeypatch.setattr(doctor, "_ask", lambda *arguments: answers[arguments])
    (finding,) = doctor.devices()
    assert finding.verdict == "PROBLEM" and "a small kernel does not run: the process was ended" in finding.text
    assert "CLNN_DEVICE_EXCLUDE='X'" in finding.remedy

    answers["try", "0:0"] = answers["try", "0:0"][0], "error: unknown target CPU 'generic'"
    (finding,) = doctor.devices()
    assert finding.remedy.startswith("The driver is older than this processor")
    said = "Device pthread-skylake-Intel(R) Xeon(R) failed to build the program\n\n(options: -DREAL=float)"
    assert "POCL_CACHE_DIR" in clnn.BuildError.remedy(said) and not clnn.BuildError.remedy(
        f"error: f.cl:1: undeclared\n{said}"
    )


# -- train -------------------------------------------------------------------------------------------------------------
def test_train_digits_reaches_97_percent(tmp_path):
    file = tmp_path / "models" / "net.clnn"
    code, out, _ = run("train", "digits", "--save", str(file))
    assert code == 0
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", out).group(1))
    assert accuracy >= 97
    assert re.search(r"matrix products by (tile|clblast)", out) and "7,510 parameters" in out
    assert len(re.findall(r"^epoch +\d+ of 30: loss", out, re.M)) == 10  # and no progress bar in the way
    (_, _), (x, y) = clnn.data.digits()
    assert round(100 * clnn.load(file).evaluate(x, y)["accuracy"], 2) == accuracy


@pytest.mark.parametrize("where", ["folder", "file/inside.clnn", "a" * 300, "net.onnx", "net.ONNX"])
def test_where_a_network_cannot_be_saved_it_is_not_trained(tmp_path, where):
    (tmp_path / "folder").mkdir(), (tmp_path / "file").write_text("")
    code, out, errors = run("train", "digits", "--save", str(tmp_path / where))
    wanted = "clnn.onnx.save(net, path) writes one" if where.lower().endswith(".onnx") else "cannot be written"
    assert code == 1 and wanted in errors and "epoch" not in out
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.parametrize(
    "command", ["train digits --save", "verify softmax --json", "bench gemm --json", "bench gemm --plot", "bench --picture",
                "tune --show --ship"],
)  # fmt: skip
def test_a_file_that_cannot_be_written_is_found_out_before_anything_is_measured(command, tmp_path):
    for file in (str(tmp_path), ""):  # "" as of a shell's variable that is not set
        code, out, errors = run(*command.split(), file)
        assert (code, out) == (1, "") and f"{command.split()[-1]} {file!r} cannot be written" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="where root may not write either")
def test_reproduce_looks_at_its_folder_before_it_trains():
    code, out, errors = run("reproduce", "network", "--output", "/proc/nowhere")
    assert (code, out) == (1, "") and re.fullmatch("clnn: a file .* cannot be read or written: .*/proc/.*\n", errors)


@pytest.mark.parametrize("option", ["--plot", "--picture"])
def test_bench_looks_at_the_ending_of_a_picture_before_it_measures(tmp_path, option):
    pytest.importorskip("matplotlib")
    code, out, errors = run("bench", "gemm", "--quick", option, str(tmp_path / "x.foo"))
    assert (code, out) == (1, "") and re.fullmatch(rf"clnn: {option}: Matplotlib draws no .foo: .* png, .*\n", errors)


@pytest.mark.skipif(os.name == "nt", reason="it is a shell that closes it")
def test_train_needs_no_stderr():
    command = f"{sys.executable} -m clnn train digits --epochs 1 2>&-"
    assert b"test accuracy" in subprocess.run(command, shell=True, stdout=subprocess.PIPE, timeout=300).stdout


def test_files_of_other_libraries_say_who_reads_them(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3)}, tmp_path / "torch.safetensors", metadata={"format": "pt"})
    (tmp_path / "net.onnx").write_bytes(b"\x08\x07" * 99)
    for file, reader in (("torch.safetensors", "clnn.interop.from_safetensors"), ("net.onnx", "clnn run ")):
        code, _, errors = run("warm", str(tmp_path / file))
        assert code == 1 and reader in errors and "restore" not in errors


@pytest.mark.slow
def test_train_digits_is_no_luck_of_the_seed():
    lr, _, batch_size, epochs = cli.GOOD["digits"]
    (x, y), (x_test, y_test) = clnn.data.digits()
    accuracies = []
    for seed in range(1, 6):
        net = clnn.Sequential([clnn.Dense(100, "relu"), clnn.Dense(10, "softmax")], input_shape=64, seed=seed)
        optimizer = clnn.SGD(lr, momentum=0.9, weight_decay=1e-4)
        net.fit(x, y, loss="cross_entropy", optimizer=optimizer, epochs=epochs, batch_size=batch_size, seed=seed)
        accuracies.append(net.evaluate(x_test, y_test)["accuracy"])
    assert sorted(accuracies)[1] >= 0.97, accuracies


@pytest.mark.slow
@pytest.mark.parametrize("loss", cli.LAST)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_train_with_every_loss_and_optimizer(capsys, loss, optimizer):
    arguments = ["--loss", loss, "--optimizer", optimizer, "--hidden", "20,15", "--activation", "tanh"]
    assert cli.main(["train", "digits", *arguments, "--epochs", "5", "--batch-size", "50", "--weight-decay", "0"]) == 0
    assert float(re.search(r"test accuracy ([\d.]+)%", capsys.readouterr().out).group(1)) > 25


def test_train_without_hidden_layers(capsys):
    assert cli.main(["train", "digits", "--hidden", "", "--epochs", "3"]) == 0
    assert "650 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adam", "--momentum", "0.5"], "--momentum goes with --optimizer sgd"),
        (["--activation", "rely"], "'rely'"),
        (["--lr", "-1"], "lr should be in"),
        (["--epochs", "-1"], "epochs should be"),
        (["--hidden", "100,0"], "Dense's size"),
    ],
)
def test_train_says_in_one_line_what_is_wrong(capsys, arguments, message):
    assert cli.main(["train", "digits", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("clnn: ") and message in error and error.count("\n") == 1


def test_wrong_usage_is_exit_code_2(capsys):
    for arguments in ([], ["train"], ["train", "letters"], ["train", "digits", "--hidden", "100;50"], ["devises"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2
        assert "usage: clnn" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for another process on Windows")
def test_ctrl_c_is_exit_code_130():
    command = [sys.executable, "-u", "-m", "clnn", "train", "digits", "--epochs", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while "to test" not in process.stdout.readline():
                assert process.poll() is None, process.stderr.read()
            time.sleep(2)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
        finally:
            process.kill()
    # LLVM, interrupted while it compiles in this process, has a line of its own
    assert process.returncode == 130 and error.removeprefix("1 error generated.\n") == "clnn: interrupted\n"


# -- help --------------------------------------------------------------------------------------------------------------
def test_every_workload_is_named_by_help_and_on_the_benchs_page(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    told = re.sub(r"-\s+", "-", capsys.readouterr().out)
    page = (Path(clnn.__file__).parent / "tools/bench/README.md").read_text(encoding="utf-8")
    for name in WORKLOADS:
        assert (
            re.search(rf"(?<![\w-]){name}(?![\w-])", told)
            and f"`{name}`" in page.split("\nWorkloads: ")[1].split(". ")[0]
        )


def test_version_and_help(capsys):
    assert run("--version")[:2] == (0, f"clnn {clnn.__version__}\n")
    for arguments in (["--help"], ["devices", "--help"], ["doctor", "--help"], ["train", "--help"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0
    text = capsys.readouterr().out
    for word in ("devices", "doctor", "train", "CLNN_DEVICE", "--hidden", "--weight-decay", "--save"):
        assert word in text
