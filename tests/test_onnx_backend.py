"""The onnx library's own tests of a backend, run on clnn: operators, and whole models.

`python -m pytest tests/test_onnx_backend.py` prints how many pass, by operator: the table of clnn/onnx/README.md.
"""

import collections

import pytest

pytest.importorskip("onnx")
from onnx.backend.test.loader import load_model_tests  # noqa: E402
from onnx_backend import LIGHT, folder_case, light_case, node_case, node_tests, result_of  # noqa: E402

COUNTS = collections.defaultdict(collections.Counter)  # by operator: how many passed, failed, are not supported
# What a test that is not a node's needs to pass, of how many
FOLDERS = {"pytorch-converted": 80, "pytorch-operator": 33, "simple": 12}
LARGE = ("vgg19", "bvlc_alexnet", "zfnet512", "densenet121", "inception_v2")  # which take longer


def by_operator():
    """The cases of nodes in groups: those of one operator together."""
    found = collections.defaultdict(list)
    for case in node_tests():
        if case.model is None:
            pytest.skip("this onnx is older, and has its cases in files", allow_module_level=True)
        found[case.model.graph.node[-1].op_type].append(case)
    return dict(sorted(found.items()))


CASES = by_operator()


@pytest.mark.parametrize("operator", CASES)
def test_nodes(operator):
    """A case of an operator that is supported passes."""
    failed = []
    for case in CASES[operator]:
        kind, why = result_of(node_case(case))
        COUNTS[operator][kind] += 1
        if kind == "failed":
            failed.append(f"{case.name}: {why}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("kind", FOLDERS)
def test_models(kind):
    results = {one.name: result_of(folder_case(one)) for one in load_model_tests(kind=kind)}
    COUNTS[kind].update(result for result, _ in results.values())
    failed = [f"{name}: {why}" for name, (result, why) in results.items() if result == "failed"]
    assert not failed, "\n".join(failed)
    assert COUNTS[kind]["passed"] + COUNTS[kind]["float64"] >= FOLDERS[kind], [
        f"{n}: {why}" for n, (r, why) in results.items() if r != "passed"
    ]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in LIGHT])
def test_light_models(name):
    kind, why = result_of(light_case(name))
    COUNTS["light models"][kind] += 1
    assert kind == "passed", why


def table(counts):
    """What passed of each operator's cases, four to a row, and which operators are not supported."""
    cells = [f"{name} {c['passed']}/{sum(c.values())}" for name, c in counts.items() if c["passed"]]
    cells += [""] * (-len(cells) % 4)
    rows = [f"| {' | '.join(cells[i : i + 4])} |" for i in range(0, len(cells), 4)]
    return "\n".join(
        [
            "| | | | |",
            "|---|---|---|---|",
            *rows,
            "",
            "None of: " + ", ".join(n for n, c in counts.items() if not c["passed"]),
        ]
    )


def test_the_table_is_that_of_the_readme(capsys):
    """Runs last: prints the table of what this run has counted."""
    total = sum(COUNTS.values(), collections.Counter())
    with capsys.disabled():
        print(f"\n\n{table(COUNTS)}")
        print(f"\n{total['passed']:,} passed, {total['failed']} failed, {total['unsupported']} are not supported")
    assert total["failed"] == 0
    nodes = sum(COUNTS[name]["passed"] + COUNTS[name]["float64"] for name in CASES)
    assert nodes >= 1_000 or len(COUNTS) < len(CASES)  # of 1,404, where all were run
