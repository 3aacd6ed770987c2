"""The command line, `clnn` or `python -m clnn`: which devices there are, what is wrong with them, training, models, and speed."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..callbacks import Callback
from ..checkpoint import model_path
from ..errors import CheckpointError, ClnnError, ConfigurationError
from ..files import as_path, check_place
from ..notebook import check_picture

# The activation of the last layer, by loss: the losses that class numbers go with.
LAST = {
    "cross_entropy": "softmax", "log_likelihood": "softmax", "binary_cross_entropy": "sigmoid", "quadratic": "sigmoid",
}  # fmt: skip
# What is good for each optimizer and data set where nothing else is asked for: (lr of SGD, of Adam, batch size, epochs)
GOOD = {"digits": (0.05, 0.002, 10, 30), "mnist": (0.02, 0.001, 32, 10), "fashion_mnist": (0.02, 0.001, 32, 10)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what comes back is the exit code."""
    try:
        try:
            options = _parser().parse_args(arguments)
        except SystemExit:  # after --help and --version, and for what is none of the commands
            print(end="", flush=True)
            raise
        for name in ("save", "json", "plot", "picture", "ship"):  # files, written after hours of training or measuring
            if (file := getattr(options, name, None)) is not None:
                try:
                    check_place((model_path if name == "save" else as_path)(file))
                except (OSError, ValueError) as error:
                    raise CheckpointError(f"--{name} {file!r} cannot be written: {error}") from error
        code: int = options.run(options)
        print(end="", flush=True)
        return code
    except BrokenPipeError:  # whoever read the output, such as head, has enough of it
        _drop_output()
        return 141  # as a shell says of who is ended by SIGPIPE
    except OSError as error:
        try:
            print(end="", flush=True)
        except OSError:  # it is the output's
            _drop_output()
            print(f"clnn: the output cannot be written: {error}", file=sys.stderr)
            return 1
        print(f"clnn: a file or a folder cannot be read or written: {error}", file=sys.stderr)
        return 1
    except ClnnError as error:
        print(f"clnn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("clnn: interrupted", file=sys.stderr)
        return 130


def _drop_output() -> None:
    """Have Python write at its end nowhere what is left of the output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clnn",
        description="Deep learning from scratch on OpenCL.",
        epilog="CLNN_DEVICE chooses the device: gpu, cpu, gpu:1, 0:1 (platform:device), or a part of its name.",
    )
    parser.add_argument("--version", action="version", version=f"clnn {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("devices", help="list the OpenCL devices and say which one is used, and why")
    command.set_defaults(run=devices)

    command = commands.add_parser("doctor", help="check drivers, devices and packages, and say what to do")
    command.set_defaults(run=_doctor)

    command = commands.add_parser(
        "verify",
        help="check that this device computes right and how fast, for an issue about it",
        description="Compare every family of kernels with NumPy in float64, on odd and large sizes, gradients included, and "
        "measure speed, in at most three minutes. Each family runs in a process of its own, so that a driver's crash ends "
        "that one only. The text at the end is made to be pasted into an issue: it has no names of users and no paths.",
    )
    add = command.add_argument
    add(
        "families",
        nargs="*",
        metavar="FAMILY",
        help="gemm, conv, norm, ..., or one of peaks, products, convolutions, nielsen, mlp, cnn (all of them)",
    )
    add("--json", metavar="FILE", help="write all that was found")
    add("--minutes", type=float, default=3.0, metavar="N", help="begin nothing after that many (%(default)g)")
    add("--limit", type=float, default=60.0, metavar="S", help="seconds that one family may take (%(default)g)")
    command.set_defaults(run=_verify)

    command = commands.add_parser(
        "train",
        help="train a network on a data set of images",
        description="Train a network of dense layers on a data set of images, and test it. Defaults stand in brackets.",
    )
    add = command.add_argument
    add("data", choices=GOOD, help="the data set; digits is small and needs no download")
    add(
        "--hidden",
        type=_sizes,
        default="100",
        metavar="N,N,...",
        help="sizes of the hidden layers; '' for none (%(default)s)",
    )
    add(
        "--activation",
        default="relu",
        metavar="NAME",
        help="of the hidden layers: relu, sigmoid, tanh, gelu, ... (%(default)s)",
    )
    add("--loss", choices=LAST, default="cross_entropy", help="the last layer goes with it (%(default)s)")
    add("--optimizer", choices=("sgd", "adam"), default="sgd", help="how weights are updated (%(default)s)")
    add("--lr", type=float, metavar="X", help="learning rate (what suits the data and the optimizer)")
    add("--momentum", type=float, metavar="X", help="of SGD (0.9)")
    add("--epochs", type=int, metavar="N", help="passes over the training set (30 for digits, else 10)")
    add("--batch-size", type=int, metavar="N", help="samples of a step (10 for digits, else 32)")
    add("--weight-decay", type=float, default=1e-4, metavar="X", help="L2 regularisation (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="for weights and the order of samples (%(default)s)")
    add("--save", metavar="FILE", help="where to write the trained model, for clnn.load (nowhere)")
    command.set_defaults(run=train)

    command = commands.add_parser(
        "serve",
        help="put a model behind a page where digits are drawn and answered, and an address for programs",
        description="Answer for a model on this machine, until Ctrl-C: in a page, where a digit is drawn and its answer, the "
        "probabilities and what each layer computes show at once (models of MNIST's or scikit-learn's digits), and for "
        'programs: POST /predict takes {"x": [...]} as application/json, or a .npy file as application/x-npy, of any model.',
    )
    add = command.add_argument
    add("model", metavar="FILE", help="what net.save wrote (.safetensors), or an ONNX file (.onnx)")
    add(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="listen on this address; 0.0.0.0 for all (%(default)s: this machine alone)",
    )
    add("--port", type=int, default=8000, metavar="N", help="0 for any free one (%(default)s)")
    command.set_defaults(run=_serve)

    command = commands.add_parser(
        "warm",
        help="compile ahead what a model or a workload needs, and say what takes how long",
        description="Drivers compile kernels when they are first used, and keep them. This uses them: a few steps of a workload "
        "of `clnn bench` (nielsen and mlp), or predictions of a model in a file. So a second run says what a warm start takes.",
    )
    command.add_argument(
        "names", nargs="*", metavar="WORKLOAD|FILE", help="such as cnn, or model.safetensors (nielsen mlp)"
    )
    command.set_defaults(run=_warm)

    command = commands.add_parser(
        "predict",
        help="read digits in pictures of one's own by a trained model",
        description="Say which digit is on each picture, with the most likely three and their probabilities. The picture is "
        "inverted where its background is bright, cropped and centred as MNIST's are. PNG is read without any package, other "
        "formats by Pillow. `clnn train mnist --save model.safetensors` makes a model.",
    )
    command.add_argument(
        "model", metavar="MODEL", help="a file that net.save() wrote, of a network for mnist() or digits()"
    )
    command.add_argument("pictures", nargs="+", metavar="PICTURE", help="an image with one digit: mine.png")
    command.set_defaults(run=_predict)

    command = commands.add_parser(
        "bench",
        help="measure this device, alone or against other libraries",
        description="Measure training, inference, matrix products and convolutions, in interleaved rounds, after checking "
        "that every side computes the same losses. Without --against it says how much of the device's peak clnn reaches.",
    )
    add = command.add_argument
    add(
        "workloads",
        nargs="*",
        metavar="WORKLOAD",
        help="gemm, conv, nielsen, mlp, mlp1, cnn, lenet, resnet, mobilenet, gpt, generate, attention, lstm, gru, embedding, "
        "predict-1, inference, deep, optimizer, short, first-step, memory (gemm nielsen mlp inference optimizer memory)",
    )
    add("--against", default="", metavar="A,B,...", help="numpy, sklearn, torch, jax, tinygrad: those installed run")
    add("--rounds", type=int, metavar="N", help="of each side (7)")
    add("--quick", action="store_true", help="three rounds and fewer shapes")
    add("--markdown", action="store_true", help="print the table as Markdown")
    add("--json", metavar="FILE", help="write all that was measured")
    add("--plot", metavar="FILE", help="draw it (needs matplotlib)")
    add("--picture", metavar="FILE", help="draw README's picture: a training curve, and a training step on each side")
    add("--profile", action="store_true", help="list the launches of steps, predictions or products instead")
    command.set_defaults(run=bench)

    command = commands.add_parser(
        "run",
        help="run a model from a file: an ONNX file, or one that net.save() wrote",
        description="Run a model once on the device in use. Print the shapes of inputs and outputs and the times of loading and "
        "of the first answer. With --against the exit status is 1 where the answers differ.",
    )
    add = command.add_argument
    add("model", metavar="MODEL", help="*.onnx, *.safetensors or *.clnn")
    add(
        "--input", action="append", default=[], metavar="NAME=FILE",
        help="an array, .npy, or a number for the input of that name; FILE.npz alone has arrays for the inputs that it names",
    )  # fmt: skip
    add("--shape", action="append", default=[], metavar="NAME=N,N,...", help="of an input that is made up, at random")
    add("--seed", type=int, default=0, metavar="N", help="of inputs that are made up (%(default)s)")
    add("--output", metavar="FOLDER", help="where to write the outputs, one .npy file each (nowhere)")
    add("--bench", action="store_true", help="measure further calls")
    add("--against", default="", metavar="onnxruntime", help="compare with it, and with --bench measure both in turns")
    add("--rounds", type=int, default=7, metavar="N", help="of --bench (%(default)s)")
    add("--profile", action="store_true", help="list the launches with their times")
    command.set_defaults(run=_run)

    command = commands.add_parser(
        "reproduce",
        help="run the experiments of Nielsen's book and compare",
        description="Run the experiments of Nielsen's book on MNIST with its hyper-parameters, and print its figures beside "
        "clnn's. Each run is kept as it ends: Ctrl-C stops, and the same command goes on. The convolutional networks of "
        "chapter 6 (conv, vote) take hours and run only where they are named, or with --all; they go on after the last epoch.",
    )
    add = command.add_argument
    add(
        "experiments",
        nargs="*",
        metavar="EXPERIMENT",
        help="which (all but conv and vote); a beginning such as hidden-layers or conv names several",
    )
    add("--seeds", type=int, default=3, metavar="N", help="runs of each (%(default)s)")
    add("--output", default="reproduced", metavar="FOLDER", help="where runs, table and curves are kept (%(default)s)")
    add("--against", default="", metavar="numpy", help="run network.py's experiments in NumPy as well, in turns")
    add("--all", action="store_true", help="all experiments, the convolutional ones too")
    add("--epochs", type=int, metavar="N", help="cut longer experiments down to N epochs; their rows say so")
    add("--list", action="store_true", help="only say which experiments there are")
    command.set_defaults(run=_reproduce)

    command = commands.add_parser(
        "tune",
        help="find what multiplies matrices and convolves fastest on this device, and keep it",
        description="Measure tiles, CLBlast's parameters and both engines for each class of shape on the device in use, "
        "and on CPUs plans of the convolutions that `clnn bench conv` has, or of your own (--conv); keep what wins in the "
        "cache folder, where every later run finds it. What is stored is stored class by "
        "class: Ctrl-C stops, and the next run goes on.",
    )
    add = command.add_argument
    level = command.add_mutually_exclusive_group()
    level.add_argument("--quick", action="store_true", help="few candidates: minutes")
    level.add_argument("--thorough", action="store_true", help="all tiles and many of CLBlast's parameters: hours")
    add("--minutes", type=float, metavar="N", help="stop after that many; the next run goes on")
    add("--engine", choices=("tile", "clblast", "conv", "all"), default="all", help="what to tune (%(default)s)")
    add(
        "--conv", action="append", default=[], metavar="NxCxHxW,K,SIZE",
        help="tune this convolution alone, of an input of that shape to K channels, forward and its gradients; behind it "
        "may stand ,STRIDE,PADDING,GROUPS; several --conv tune several",
    )  # fmt: skip
    add("--show", action="store_true", help="print what is known of this device, and measure nothing")
    add("--forget", action="store_true", help="forget what was measured for this device first")
    add(
        "--ship",
        metavar="FILE",
        help="ignore the table that ships with clnn, and add what was found to FILE, its successor",
    )
    command.set_defaults(run=tune)

    command = commands.add_parser(
        "run-mpi",
        help="run a script on several ranks that train together, on this machine",
        description="Start a script that calls clnn.distributed.init() as so many processes, by the mpirun that belongs to "
        "mpi4py. On a CPU each gets cores of its own. The exit status is mpirun's. Across machines use mpirun itself.",
    )
    command.add_argument("-n", type=int, required=True, metavar="N", help="how many ranks")
    command.add_argument("program", nargs=argparse.REMAINDER, metavar="SCRIPT ...", help="the script and its arguments")
    command.set_defaults(run=_run_mpi)
    return parser


def _sizes(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"sizes are whole numbers with commas between, such as 100,50, not {text!r}"
        ) from None


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import doctor

    return doctor()


def _verify(options: argparse.Namespace) -> int:
    """Check families and measure, print the text, and write what was asked for."""
    from ..files import write_atomically
    from .verify import report, run

    if not (0 < options.minutes < 1e6 and 0 < options.limit < 1e6):
        raise ConfigurationError(
            f"--minutes and --limit should be above 0, {options.minutes:g} and {options.limit:g} were provided instead"
        )
    say = lambda text: print(report.private(text), file=sys.stderr, flush=True)  # noqa: E731
    found = run.verify(options.families, options.minutes, options.limit, say)
    print(report.text(found))
    if options.json:
        write_atomically(as_path(options.json), report.as_json(found).encode())
    return 1 if run.faults(found) else 0


# -- devices ----------------------------------------------------------------------------------------------------------
def devices(options: argparse.Namespace) -> int:
    """A table of all devices, with a mark at the one in use."""
    from ..runtime.devices import choice
    from ..runtime.devices.ranking import unit_lanes

    used = choice.device()
    rows = [("", "device", "kind", "name", "platform", "memory", "units", "lanes", "clock", "fp16", "fp64")]
    for d in choice.devices():
        rows.append(
            (
                "*" if d is used else "",
                f"{d.platform_index}:{d.device_index}",
                d.kind,
                d.name,
                f"{d.platform}, {d.version.split('  ')[0]}"  # PoCL lists how it was built after two spaces
                + (f" ({d.twin.platform_index}:{d.twin.device_index} once more)" if d.twin else ""),
                f"{d.global_memory / 2**30:.1f} GiB{' of the host' if d.unified else ''}",
                str(d.compute_units),
                str(unit_lanes(d)) if d.kind == "gpu" else "",
                f"{d.clock_mhz} MHz",
                "yes" if d.has_fp16 else "no",
                "yes" if d.has_fp64 else "no",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"\n* {used.platform_index}:{used.device_index} is used, {_why(used)}.")
    for fault in choice.faults():
        print(f"Left out: {fault}")
    return 0


def _why(used: Any) -> str:
    from ..runtime.devices.ranking import reason

    for name in ("CLNN_DEVICE", "PYOPENCL_CTX"):
        if value := os.environ.get(name, "").strip():
            return f"because {name} is {value!r}"
    return (
        f"by default: {reason(used)}. A GPU comes before an accelerator before a CPU, then memory of its own, then the most "
        "units x lanes x clock; CLNN_DEVICE chooses another"
    )


# -- train ------------------------------------------------------------------------------------------------------------
class Lines(Callback):
    """A line for about ten of the epochs, where the output is no terminal and a progress bar would be noise."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.every = epochs, max(1, epochs // 10)

    def on_epoch_end(self, model: Any, epoch: int, logs: dict[str, float]) -> None:
        if (epoch + 1) % self.every == 0 or epoch + 1 == self.epochs:
            print(
                f"epoch {epoch + 1:3} of {self.epochs}: loss {logs['loss']:.4f}, accuracy {logs['accuracy']:.2%}, "
                f"{logs['seconds']:.2f} s",
                flush=True,
            )


def train(options: argparse.Namespace) -> int:
    """Train a multilayer perceptron on one of the data sets."""
    from .. import data
    from ..gemm import engine_name
    from ..layers import Dense
    from ..model import Sequential
    from ..optim import SGD, Adam
    from ..runtime.devices.choice import device

    lr_sgd, lr_adam, batch_size, epochs = GOOD[options.data]
    batch_size = batch_size if options.batch_size is None else options.batch_size
    epochs = epochs if options.epochs is None else options.epochs
    if options.optimizer == "sgd":
        momentum = 0.9 if options.momentum is None else options.momentum
        optimizer: Any = SGD(lr_sgd if options.lr is None else options.lr, momentum, weight_decay=options.weight_decay)
    elif options.momentum is None:
        optimizer = Adam(lr_adam if options.lr is None else options.lr, weight_decay=options.weight_decay)
    else:
        raise ConfigurationError("--momentum goes with --optimizer sgd; Adam has moments of its own")

    used = device()
    print(f"{used.name} ({used.platform}), matrix products by {engine_name(used)}")
    (x, y), (x_test, y_test) = getattr(data, options.data)()
    hidden = [Dense(size, options.activation) for size in options.hidden]
    net = Sequential([*hidden, Dense(10, LAST[options.loss])], input_shape=x.shape[1], seed=options.seed)
    print(f"\n{net.summary()}\n\n{options.data}: {len(x):,} images to train on, {len(x_test):,} to test", flush=True)

    lines = [] if sys.stderr and sys.stderr.isatty() else [Lines(epochs)]
    began = time.perf_counter()
    net.fit(
        x, y, loss=options.loss, optimizer=optimizer, epochs=epochs, batch_size=batch_size, seed=options.seed, callbacks=lines,
        progress=not lines,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    result = net.evaluate(x_test, y_test)
    print(f"\ntest loss {result['loss']:.4f}, test accuracy {result['accuracy']:.2%}, trained in {seconds:.1f} s")
    if options.save:
        net.save(options.save)
        print(f"saved: clnn.load({options.save!r}) gives the network back")
    return 0


# -- serve ------------------------------------------------------------------------------------------------------------
def _serve(options: argparse.Namespace) -> int:
    """Answer until Ctrl-C."""
    from pathlib import Path

    from .serve import Server
    from .serve.answers import load

    server = Server(load(options.model), options.host, options.port, Path(options.model).name)
    reach = "this machine alone reaches it" if server.local else "whoever reaches this machine may ask it"
    print(f"{options.model} on {server.answers.model.device.name}: {server.url} ({reach}; Ctrl-C ends it)", flush=True)
    try:
        with server:
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        print("ended")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from .predict import predict

    print(*predict(options.model, options.pictures), sep="\n")
    return 0


# -- bench ------------------------------------------------------------------------------------------------------------
def bench(options: argparse.Namespace) -> int:
    """Measure, print a table, and write what was asked for."""
    from ..files import write_atomically
    from .bench import report, run

    if options.profile:
        for name in options.workloads or ["mlp"]:
            print(f"{name}\n{run.profile(name)['table'].rstrip()}")
        return 0
    rounds = options.rounds if options.rounds is not None else 3 if options.quick else 7
    for option, file in (("--plot", options.plot), ("--picture", options.picture)):
        if file:
            check_picture(option, file)
    against = [name for name in options.against.split(",") if name]
    measured = run.Bench(against, rounds, options.quick, say=lambda text: print(text, file=sys.stderr, flush=True))
    run.run(options.workloads or run.DEFAULT, measured)
    print(report.header(measured), end="\n\n")
    print(report.table(measured, options.markdown), end="\n\n")
    for line in (*report.summary(measured), *measured.notes):
        print(line)
    if options.json:
        write_atomically(as_path(options.json), report.as_json(measured).encode())
    if options.plot:
        report.plot(measured, as_path(options.plot))
    if options.picture:
        report.picture(measured, as_path(options.picture))
    return 0


def _warm(options: argparse.Namespace) -> int:
    """Compile ahead."""
    from .warm import warm

    return warm(options.names)


# -- run --------------------------------------------------------------------------------------------------------------
def _run(options: argparse.Namespace) -> int:
    """Run a model from a file."""
    from . import run

    return run.run(options)


# -- reproduce --------------------------------------------------------------------------------------------------------
def _reproduce(options: argparse.Namespace) -> int:
    """Run the book's experiments, or list them."""
    from . import reproduce

    if options.list:
        for name, one in reproduce.planned(reproduce.chosen(options.experiments, True), options.epochs).items():
            print(f"{name:30} {reproduce.described(one)}")
        return 0
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    given = (options.experiments, options.seeds, options.output, options.against, say, options.all, options.epochs)
    print(reproduce.reproduce(*given))
    return 0


# -- run-mpi ----------------------------------------------------------------------------------------------------------
def _run_mpi(options: argparse.Namespace) -> int:
    """Run a script on several ranks."""
    from . import mpi

    return mpi.run(options.n, options.program[options.program[:1] == ["--"] :])


# -- tune -------------------------------------------------------------------------------------------------------------
def tune(options: argparse.Namespace) -> int:
    """Search for what is fastest; 3 where time was up before the end."""
    from .tune import search

    level = "quick" if options.quick else "thorough" if options.thorough else "default"
    return search.tune(
        level, options.minutes, options.engine, options.show, options.forget, options.ship or "", options.conv
    )
