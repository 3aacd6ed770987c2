"""Programs: `.cl` files read, their includes resolved, built with defines, and kept.

Includes are resolved here rather than with `-I`, because PoCL refuses paths with spaces; `#line` keeps
the compiler's messages pointing at the file a person edits.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyopencl as cl

from ..errors import BuildError
from .bundles import Bundles, Key

_PACKAGE = Path(__file__).resolve().parent.parent
# An unsuffixed 0.5 in a formula is a float in float programs. (Oclgrind ignores -cl-single-precision-constant.)
_LITERAL = re.compile(r"(?<![\w.])(\d+\.\d+(?:[eE][+-]?\d+)?)(?![\w.])")
# Adam's moments of weights that get no gradients any more shrink into denormal numbers and, rounded, stay there. On x86 each
# of those costs a hundred times as much: steps of 784-512-256-10 took twice as long from some 600 on.
FLUSH = "-cl-denorms-are-zero"
# PoCL from 4.0 on does not inline its own vload16, min, ... into a program that was built so (newer LLVMs inline no function
# of another denormal mode), which costs a product three quarters of its speed. There the kernels whose work-items are groups
# of their own are built without the option and begin with this call; in others it would stand in the loop over a group.
FLUSH_HERE = " flush_denormals();"
KERNEL = re.compile(r"^kernel\b[^{;]*\{", re.MULTILINE)
# Without a version newer compilers take OpenCL C 3, where a plain pointer may point anywhere and fits no function that is
# overloaded by address space. No kernel needs more than 1.2.
STANDARD = "-cl-std=CL1.2"
_INCLUDE = re.compile(r'^\s*#include\s+"([^"]+)"\s*$')

# Whoever wants to know what is built, such as a line of progress: told (what, None) before a program, and (what, seconds) after
listening: list[Callable[[str, float | None], None]] = []


def kernel_folder() -> Path:
    """The folder of the `.cl` files: the checkout's `kernels/` where there is one, else the installed copy."""
    checkout = _PACKAGE.parent / "kernels"
    if (_PACKAGE.parent / "pyproject.toml").exists() and checkout.is_dir():
        return checkout
    return _PACKAGE / "kernels"


def read_source(name: str, seen: set[str] | None = None) -> str:
    """The text of `kernels/<name>.cl` with each `#include "file.cl"` put in once, in place."""
    seen = set() if seen is None else seen
    path = kernel_folder() / f"{name}.cl"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BuildError(f"the kernel file {path} cannot be read ({error}); is clnn installed completely?") from error
    seen.add(name)
    lines = [f'#line 1 "{name}.cl"']
    for number, line in enumerate(text.splitlines(), 1):
        included = _INCLUDE.match(line)
        if not included:
            lines.append(line)
            continue
        other = included.group(1).removesuffix(".cl")
        if other in seen:
            lines.append("")
        else:
            lines += [read_source(other, seen), f'#line {number + 1} "{name}.cl"']
    return "\n".join(lines)


def source_for(file: str, real: str) -> str:
    """The text of a kernel file, its literals of the type `real`."""
    source = read_source(file)
    return _LITERAL.sub(r"\1f", source) if real == "float" else source


class Source(NamedTuple):
    """A kernel as it is compiled: its file and name, the real type, and the defines, sorted."""

    file: str
    name: str
    real: str
    defines: tuple[tuple[str, Any], ...]

    @property
    def program(self) -> Key:
        """The program that it is in."""
        return self.file, self.real, self.defines

    @property
    def label(self) -> str:
        """In words: the file, the name, and what is compiled in."""
        return f"{self.file}.{self.name}{dict(self.defines) or ''}"


class Programs:
    """The built programs of one context, and one reusable kernel each."""

    def __init__(
        self, context: cl.Context, pocl_version: tuple[int, int] = (0, 0), notes: Bundles | None = None
    ) -> None:
        self.context, self._flush_here = context, pocl_version >= (4, 0)
        self._usual = [STANDARD, FLUSH]  # options of every program
        self._programs: dict[Key, tuple[cl.Program, str]] = {}  # and what the names of its kernels begin with
        # steps as one kernel, and the seconds that one takes without it
        self.made: dict[str, tuple[cl.Program, float]] = {}
        self.replays: Counter[str] = Counter()  # of steps that may become one, in this process
        self.bundles = notes or Bundles()
        self._kernels: dict[tuple[Any, ...], cl.Kernel] = {}
        self._sources: dict[Any, str] = {}  # the texts of files, by real type
        self.begun = 0  # builds so far, with the one under way
        self.group_limits: dict[Source, int] = {}  # those asked for so far

    def load(self, keys: Sequence[Key]) -> None:
        """Build programs as one text, where that can be; others are built alone when they are needed."""
        self.begun += len(keys)
        self._programs = self.bundles.build(keys, self._text, self._built) | self._programs

    def build(self, file: str, real: str, defines: tuple[tuple[str, Any], ...]) -> tuple[cl.Program, str]:
        """A program, by the bundle that the driver keeps it in, and what the names of its kernels begin with there."""
        key = file, real, defines
        if key not in self._programs:
            self.load(self.bundles.of(key))
        if key not in self._programs:
            self._programs[key] = self._compile(*key), ""
            self.bundles.note([key])
        return self._programs[key]

    def has(self, key: Key) -> bool:
        """Whether a program is built."""
        return key in self._programs

    def build_text(self, source: str) -> cl.Program:
        """A text that was made. `BuildError` where the driver does not take it."""
        return self._built("a step as one kernel", source, [], not self._flush_here)

    @property
    def options_of_made(self) -> list[str]:
        """The options that such a text is built with."""
        return self._options(not self._flush_here)

    def _options(self, flush: bool) -> list[str]:
        return [option for option in self._usual if flush or option != FLUSH]

    def _text(self, file: str, real: str, defines: tuple[tuple[str, Any], ...]) -> tuple[str, bool]:
        """A program's text, and whether denormal numbers are flushed by the driver's option; else by its kernels."""
        place = kernel_folder(), file, real
        source = self._sources.get(place) or self._sources.setdefault(place, source_for(file, real))
        if self._flush_here and ("STACK", 1) in defines and "flush_denormals" in source:
            return KERNEL.sub(lambda found: found.group() + FLUSH_HERE, source), False
        return source, True

    def _compile(self, file: str, real: str, defines: tuple[tuple[str, Any], ...]) -> cl.Program:
        source, flush = self._text(file, real, defines)
        options = [f"-DREAL={real}", *(f"-D{name}={value}" for name, value in defines)]
        return self._built(f"kernels/{file}.cl", source, options, flush)

    def _built(self, what: str, source: str, options: list[str], flush: bool) -> cl.Program:
        named, began = " ".join((what, *options)), time.perf_counter()
        for tell in listening:
            tell(named, None)
        program = self._made(what, source, options, flush)
        for tell in listening:
            tell(named, time.perf_counter() - began)
        return program

    def _made(self, what: str, source: str, options: list[str], flush: bool) -> cl.Program:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", cl.CompilerWarning)  # drivers print notes that no user can act on
            for cached in (None, cast(Any, False)):  # a stale or damaged binary cache is mended by a second try
                try:
                    build = lambda usual: cl.Program(self.context, source).build([*usual, *options], cache_dir=cached)  # noqa: B023, E731
                    return self._with_usual(build, flush)
                except cl.RuntimeError as error:
                    failure = error
        raise BuildError(
            f"{what} does not build on {self.context.devices[0].name} with {' '.join(options)}:\n{failure}\n"
            f"{BuildError.remedy(str(failure)) or 'Please report this with the output of `clnn doctor`'}."
        ) from failure

    def _with_usual(self, build: Callable[[list[str]], cl.Program], flush: bool) -> cl.Program:
        """A program built with the usual options, as far as the driver takes them: it is asked when a build has failed."""
        try:
            return build(self._options(flush))
        except (cl.Error, KeyError):  # pyopencl's cache ends in a KeyError where a driver refuses an option
            taken = [option for option in self._usual if self._takes(option)]
            if taken == self._usual:
                raise
            self._usual = taken
            return build(self._options(flush))

    def _takes(self, option: str) -> bool:
        try:
            cl.Program(self.context, "kernel void nothing() {}").build([option], cache_dir=cast(Any, False))
        except cl.Error:
            return False
        return True

    def _instance(self, source: Source) -> cl.Kernel:
        program, begin = self.build(*source.program)
        kernel = cl.Kernel(program, begin + source.name)
        self._note_limit(source, kernel)
        return kernel

    def new_kernel(self, source: Source, types: Any) -> cl.Kernel:
        """A kernel instance of its own, so that its arguments stay bound (a recording needs that)."""
        kernel = self._instance(source)
        kernel.set_scalar_arg_dtypes(types)
        return kernel

    def group_limit(self, source: Source) -> int:
        """The most work-items of a group that a kernel takes as it is compiled, which may be fewer than the device says."""
        if source not in self.group_limits:
            self._instance(source)
        return self.group_limits[source]

    def _note_limit(self, source: Source, kernel: cl.Kernel) -> None:
        if source in self.group_limits:
            return
        device, info = self.context.devices[0], cl.kernel_work_group_info
        most = kernel.get_work_group_info(info.WORK_GROUP_SIZE, device)
        multiple = kernel.get_work_group_info(info.PREFERRED_WORK_GROUP_SIZE_MULTIPLE, device)
        if most == multiple and device.platform.name.strip() == "rusticl":  # Mesa 22.3 takes the one for the other
            most = device.max_work_group_size
        self.group_limits[source] = most or 1

    def kernel(self, source: Source, types: Any) -> cl.Kernel:
        """The shared kernel instance of eager launches of such arguments: they are set anew at each."""
        kernel = self._kernels.get((source, types))
        if kernel is None:
            kernel = self._kernels[source, types] = self.new_kernel(source, types)
        return kernel
