"""Bundles: programs compiled as one text. PoCL takes 0.1 s to compile a text and 0.03 s to load it, whatever it holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..errors import BuildError

Key = tuple[str, str, tuple[tuple[str, Any], ...]]  # a program: its file, the real type, and the defines, sorted

# What a file names: macros, types and functions; those that a macro makes are at its uses, with what it adds to a name
MACRO = re.compile(r"^\s*#\s*define (\w+)(?:\((\w+)?.*?\))?((?:.*\\\n)*.*)", re.MULTILINE)
TYPE = re.compile(r"^typedef\b.*\b(\w+);", re.MULTILINE)
KERNEL = re.compile(r"^kernel\b[\s\S]*?\bvoid (\w+)\(", re.MULTILINE)
ATTRIBUTE = re.compile(r"__attribute__\(\(.*?\)\) ?")
FUNCTION = re.compile(r"^(?:static|INLINE|APART|kernel)\b[^(;{]*?\b(\w+)\(", re.MULTILINE)
MADE = re.compile(r"\b(?:static inline|INLINE|APART|kernel) (?:\w+ )+(?:CAT\((\w+), (\w+)\)|(\w+)##(\w+)|(\w+))\(")
MACRO_NAME = re.compile(r"^#define (\w+)", re.MULTILINE)
HEAD = "#pragma OPENCL FP_CONTRACT ON\n"  # random.cl ends contraction for itself


@lru_cache(maxsize=64)
def names_in(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """The macros of a text, and its types and functions."""
    text = ATTRIBUTE.sub("", text)
    others, macros = {*TYPE.findall(text), *FUNCTION.findall(text), *KERNEL.findall(text)}, MACRO.findall(text)
    makers: dict[str, set[str]] = {}  # macros that define functions, and what they add to the names that they are given
    for name, parameter, body in macros:
        for calls, added in [*makers.items()]:  # one that uses another
            if parameter and re.search(rf"\b{calls}\({parameter}\b", body):
                makers.setdefault(name, set()).update(added)
        for first, more, second, most, plain in MADE.findall(body):
            if parameter and (first or second or plain) == parameter:
                makers.setdefault(name, set()).add(more + most)
            else:
                others.add(first + second + plain + more + most)
    for name, added in makers.items():
        for use in re.findall(rf"\b{name}\(\s*(\w+)", text):
            others |= {kind + use + more for more in added for kind in ("", "_cl_")}  # PoCL's exp is a macro: _cl_exp
    return frozenset(name for name, _, _ in macros), frozenset(others)


@lru_cache(maxsize=64)
def settled(text: str) -> str:
    """A text in which what is a function here, and a macro where something else is compiled in, is forgotten before the macro."""
    macros, others = names_in(text)
    both = "|".join(sorted(macros & others))
    return re.sub(rf"^(\s*#\s*define ({both})\b)", r"#undef \2\n\1", text, flags=re.MULTILINE) if both else text


def apart(text: str, name: str, given: Mapping[str, Any], head: str = HEAD) -> str:
    """A program's text, in which all that it names begins with `name` and no macro outlives it, so that texts may follow each
    other in one. `head` stands before it, and what it defines is left to it; `given` are the program's defines."""
    macros, others = names_in(text)
    own = set(MACRO_NAME.findall(head))
    begin = [head, *(f"#define {key} {value}\n" for key, value in given.items() if key not in own)]
    begin += [f"#define {other} {name}_{other}\n" for other in sorted(others - own)]
    ends = macros | others | own | given.keys()
    return "".join(begin) + settled(text) + "\n" + "".join(f"#undef {one}\n" for one in sorted(ends))


class Bundles:
    """What PoCL keeps compiled, as far as clnn has noted it, in a file in the folder of PoCL's cache: so both go together."""

    def __init__(self, folder: Path | None = None, names: Callable[[], Iterable[str]] = tuple) -> None:
        """`names()`: what tells this device, its driver and these kernels from others."""
        self.folder, self.names = folder, names

    @cached_property
    def _file(self) -> Path:
        """A line for each text; it is of this device, this driver and these kernels."""
        text = "\n".join(self.names())
        return Path(self.folder or "", f"clnn-{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl")

    @cached_property
    def _known(self) -> dict[Key, tuple[Key, ...]]:
        """The text of each program: all that are in it."""
        found: dict[Key, tuple[Key, ...]] = {}
        lines: list[str] = []
        with contextlib.suppress(OSError):  # none yet
            lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines() if self.folder else []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # damaged
                read = json.loads(line)
                keys = tuple((str(file), str(real), tuple(map(tuple, defines))) for file, real, defines in read)
                found |= dict.fromkeys(keys, keys)
        return found

    def keeps(self, key: Key) -> bool:
        """Whether a program was compiled before, by this process or another one."""
        return key in self._known

    def of(self, key: Key) -> tuple[Key, ...]:
        """The programs that were compiled as one text with this one, and itself."""
        return self._known.get(key, (key,))

    def build(
        self, keys: Sequence[Key], text: Callable[..., tuple[str, bool]], built: Callable[..., Any]
    ) -> dict[Key, Any]:
        """Programs in one text for each way to flush denormal numbers, each with what its names begin with; none of those that
        do not build so. `text(*key)` is a program's text and its way, `built` compiles."""
        found: dict[Key, Any] = {}
        for flush in (True, False):
            with contextlib.suppress(BuildError):
                some = {key: one for key in keys for one, way in (text(*key),) if way == flush}
                if len(some) > 1:
                    parts = [apart(some[key], f"p{i}", {"REAL": key[1], **dict(key[2])}) for i, key in enumerate(some)]
                    files = "+".join(f"{file}.cl" for file, _, _ in some)
                    program = built(f"kernels/{files}", "".join(parts), [], flush)
                    found |= {key: (program, f"p{i}_") for i, key in enumerate(some)}
                    self.note([*some])
        return found

    def note(self, keys: Sequence[Key]) -> None:
        """Remember that these were compiled as one text, in that order."""
        if self.folder is None or self.of(keys[0]) == tuple(keys) and self.keeps(keys[0]):
            return
        self._known.update(dict.fromkeys(keys, tuple(keys)))
        with contextlib.suppress(OSError), self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(keys) + "\n")
