"""What `clnn verify` found, as a short text for an issue: without the names of users and without paths."""

from __future__ import annotations

import getpass
import json
import platform
import re
import time
from typing import Any

# The share of what the device's peaks allow that is usual at least: kernels/README.md says what GPUs' compilers make of
# the inner loops; CPUs are measured. By whether the device is a CPU.
SLOW = {
    True: {"product": 0.3, "convolution": 0.2, "step": 0.2},
    False: {"product": 0.15, "convolution": 0.05, "step": 0.05},
}
_HOMES = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s,;:'\"]+")
_PATHS = re.compile(r"(?<![\w.])(?:~|[A-Za-z]:)?(?:[/\\][\w.+@$ -]*[\w.+@$-])+[/\\]([\w.+@$-]+)")


def expected(timed: dict[str, Any], peaks: dict[str, Any]) -> float:
    """Seconds that a task takes at the device's peak of arithmetic, and for launching."""
    return timed["flops"] / peaks["gflops"] / 1e9 + timed.get("launches", 1) * peaks["launch_recorded"]


def private(value: Any) -> Any:
    """The same without paths (their last parts stay) and without the names of the user and of the machine."""
    if isinstance(value, dict):
        return {key: private(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [private(one) for one in value]
    if not isinstance(value, str):
        return value
    value = _PATHS.sub(r"\1", _HOMES.sub("~", value))
    for name, instead in ((_user(), "(user)"), (platform.node(), "(machine)")):
        if len(name) > 2 and name not in ("root", "user", "localhost"):
            value = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", instead, value)
    return value


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user without a name
        return ""


def as_json(found: dict[str, Any]) -> str:
    """All that was found."""
    return json.dumps(private(found), indent=1)


def text(found: dict[str, Any]) -> str:
    """A page of lines."""
    device = found["device"]
    facts = device.get("facts")
    if facts is None:
        return private(
            f"The device in use cannot be opened.\n{device['verdict']}\n-> {device['remedy']}\n`clnn doctor` says more."
        )
    limits = facts["limits"]
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    sizes = [
        f"{limits[name] / 2**20:,.0f} MiB {what}"
        for name, what in (("global_mem_size", "of memory"), ("max_mem_alloc_size", "in one piece"))
        if name in limits
    ]
    units, clock = limits.get("max_compute_units"), limits.get("max_clock_frequency")
    yes = {True: "yes", False: "no"}
    lines = [
        f"clnn {facts['clnn']} verify, {time.strftime('%Y-%m-%d')}",
        ", ".join([f"{facts['device']}: {facts['kind']}", f"{units} units at {clock} MHz", *sizes]),
        ", ".join(
            [facts["platform"], facts["version"], f"driver {facts['driver']}", limits.get("opencl_c_version", "")]
        ),
        f"local memory {limits.get('local_mem_size', 0) // 1024} KiB, groups up to {limits.get('max_work_group_size')}, "
        f"vectors of {facts['lanes']}, fp64 {yes[facts['fp64']]}, fp16 {yes[facts['fp16']]}, buffers aligned to "
        f"{limits.get('mem_base_addr_align')} bits, products by {facts['gemm']}",
        f"{facts['system']}, {facts['processors']} processors, Python {facts['python']}, {packages}; {facts['loader']}",
        *([f"CLNN_DEVICE_AS says {facts['form']}"] if facts["form"] else []),
        *([f"the machine is busy (load {facts['load']:.1f}): times are too long"] if _busy(facts) else []),
        "",
    ]
    width = max([len(name) for name in (*found["families"], *found["speed"])] or [0])
    for name, one in found["families"].items():
        more = ""
        if one["verdict"] == "right":
            more = (
                f", {one['facts']['comparisons']:,} values, errors up to {one['facts']['share']:.0%} of what is allowed"
            )
        lines.append(f"{name:{width}}  {one['verdict']}{more}{_seconds(one)}")
        lines += [f"{'':{width}}  {wrong['wrong']}" for wrong in one.get("wrong", [])[1:]]
        lines += [f"{'':{width}}  {note}" for note in one.get("notes", [])]
        lines += [f"{'':{width}}  -> {one['remedy']}"] if "remedy" in one else []
    if found["speed"]:
        lines.append("")
    for name, one in found["speed"].items():
        lines.append(f"{name:{width}}  {one['verdict']}{_seconds(one)}")
        lines += [f"{'':{width}}  {line}" for line in _measured(name, one)]
        lines += [f"{'':{width}}  {note}" for note in one.get("notes", [])]
        lines += [f"{'':{width}}  -> {one['remedy']}"] if "remedy" in one else []
    return private("\n".join([*lines, "", summary(found)]))


def _busy(facts: dict[str, Any]) -> bool:
    return bool(facts["load"]) and facts["load"] > 0.7 * facts["processors"]


def _seconds(one: dict[str, Any]) -> str:
    return f" ({one['seconds']:.1f} s)" if "seconds" in one else ""


def _measured(name: str, one: dict[str, Any]) -> list[str]:
    facts, lines = one.get("facts", {}), []
    if name == "peaks" and facts:
        lines.append(f"{facts['gflops']:,.0f} GFLOP/s in multiply-adds, {facts['gbytes']:,.1f} GB/s copied")
        lines.append(
            f"a launch {facts['launch_recorded'] * 1e6:.1f} us recorded, {facts['launch_eager'] * 1e6:.1f} us eager; waiting for "
            f"one {facts['wait'] * 1e6:.0f} us"
        )
    for timed in one.get("timed", []):
        rate = timed["flops"] / timed["seconds"] / 1e9
        share = f", {timed['share']:.0%} of what the peaks allow" if "share" in timed else ""
        lines.append(
            f"{timed['timed']}: {timed['seconds'] * 1e6:,.1f} us, {rate:,.0f} GFLOP/s{share} ({timed['plan']})"
        )
    if "first_step" in facts:
        lines.append(f"the first step ended {facts['first_step']:.1f} s after the process began")
    return lines


def summary(found: dict[str, Any]) -> str:
    """The last line: how many families are right."""
    families = [one for one in found["families"].values() if one["verdict"] != "left out"]
    right = sum(one["verdict"] == "right" for one in families)
    words = [f"{right} of {len(families)} families are right"]
    broken = [name for name, one in {**found["families"], **found["speed"]}.items() if one.get("fault")]
    left = [
        name for name, one in {**found["families"], **found["speed"]}.items() if one["verdict"].startswith("not run")
    ]
    slow = [name for name, one in found["speed"].items() if one["verdict"].startswith("slow")]
    for what, names in (("at fault", broken), ("slow", slow), ("not run", left)):
        if names:
            words.append(f"{what}: {', '.join(names)}")
    return "; ".join(words) + "."
