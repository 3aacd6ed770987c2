"""Reading ONNX files: the onnx library parses them, and what they say is checked before anything runs."""

from __future__ import annotations

import importlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, ConfigurationError
from ..files import as_path, why_no_file
from .graph import Graph, Node, Value

# ONNX's numbers of types; others (complex numbers, those of 4 and 8 bits) have no place here
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
FIELDS = {
    "float32": "float_data",
    "float64": "double_data",
    "int64": "int64_data",
    "uint32": "uint64_data",
    "uint64": "uint64_data",
    "string": "string_data",
}  # fmt: skip - where their values are; those of others in int32_data
NEWEST = {"": 28, "ai.onnx.ml": 5}  # the operator sets that the operators here were compared with
MOST_NESTED = 16  # graphs in graphs


def library() -> Any:
    """The onnx library. ConfigurationError where it is not installed."""
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ConfigurationError(
            "reading and writing ONNX files takes the library onnx, which is not installed: pip install onnx"
        ) from error


class Reader:
    """Makes a Graph of a protobuf; `where` is the file in words, `folder` the one that external data may lie in."""

    def __init__(self, where: str, folder: Path | None, opsets: dict[str, int]) -> None:
        self.where, self.folder, self.opsets = where, folder, opsets

    def wrong(self, what: str) -> CheckpointError:
        """The error that says what is wrong with the file."""
        return CheckpointError(f"{self.where}: {what}")

    def name(self, said: Any) -> str:
        """A name of the file; one that is no text comes as bytes."""
        if not isinstance(said, str):
            raise self.wrong(f"the name {said!r} is no text")
        return said

    def graph(self, proto: Any, depth: int = 0) -> Graph:
        """A graph with its nodes in order, its constants read."""
        if depth > MOST_NESTED:
            raise self.wrong(f"graphs lie in graphs more than {MOST_NESTED} deep")
        if len(proto.sparse_initializer):
            raise self.wrong("it has sparse initializers, which are not read here: store them as dense ones")
        constants: dict[str, np.ndarray] = {}
        for tensor in proto.initializer:
            if tensor.name in constants:
                raise self.wrong(f"two initializers have the name {tensor.name!r}")
            constants[self.name(tensor.name)] = self.array(tensor, f"initializer {tensor.name!r}")
        inputs = [self.value(one) for one in proto.input if one.name not in constants]
        nodes: list[Node] = []
        literals: set[str] = set()
        for one in proto.node:
            node = self.node(one, depth)
            constant = None if node.domain or node.op != "Constant" else self.constant(node)
            if constant is None:
                nodes.append(node)
            elif node.outputs[0] in constants:
                raise self.wrong(f"{node} gives {node.outputs[0]!r}, which is an initializer, too")
            else:
                constants[node.outputs[0]] = constant
                literals.add(node.outputs[0])
        outputs = [self.value(one) for one in proto.output]
        return Graph(self.name(proto.name), nodes, inputs, outputs, constants, self.opsets, literals=literals)

    def node(self, proto: Any, depth: int) -> Node:
        """A node with its attributes."""
        kind, domain, called = map(self.name, (proto.op_type, proto.domain, proto.name))
        inputs, outputs = ([*map(self.name, names)] for names in (proto.input, proto.output))
        node = Node(kind, "" if domain == "ai.onnx" else domain, called, inputs, outputs, {})
        for attribute in proto.attribute:
            if attribute.ref_attr_name:
                raise self.wrong(f"{node}: the attribute {attribute.name!r} refers to one of a function around it")
            node.attributes[self.name(attribute.name)] = self.attribute(attribute, node, depth)
        self.check_form(node, {attribute.name: attribute.type for attribute in proto.attribute})
        return node

    def check_form(self, node: Node, kinds: dict[str, int]) -> None:
        """The number of inputs and outputs, and the kinds of attributes, are those of the operator, as the library knows it."""
        defs = importlib.import_module("onnx.defs")
        try:
            schema = defs.get_schema(node.op, self.opsets.get(node.domain, 1), node.domain)
        except (defs.SchemaError, TypeError):  # an int that is none of C
            return  # the table of operators has none of it, either
        for name, one in schema.attributes.items():
            if name in kinds and kinds[name] != int(getattr(one.type, "value", one.type)):
                raise self.wrong(f"{node}: the attribute {name!r} is of kind {kinds[name]}, and should be {one.type}")
            if one.required and name not in kinds:
                raise self.wrong(f"{node}: the attribute {name!r} is missing")
        for what, names, least, most in (
            ("inputs", node.inputs, schema.min_input, schema.max_input),
            ("outputs", node.outputs, schema.min_output, schema.max_output),
        ):
            if not least <= len(names) <= most:
                raise self.wrong(f"{node} has {len(names)} {what}, and should have {least} to {most}")

    def attribute(self, proto: Any, node: Node, depth: int) -> Any:
        """An attribute's value."""
        kind = proto.type
        what = f"{node}: the attribute {proto.name!r}"
        if kind == 1:
            return proto.f
        if kind == 2:
            return proto.i
        if kind == 3:
            return self.text(proto.s, what)
        if kind == 4:
            return self.array(proto.t, what)
        if kind == 5:
            return self.graph(proto.g, depth + 1)
        if kind in (6, 7):
            return [*(proto.floats if kind == 6 else proto.ints)]
        if kind == 8:
            return [self.text(one, what) for one in proto.strings]
        if kind in (9, 10):
            return [self.array(t, what) for t in proto.tensors] if kind == 9 else [
                self.graph(g, depth + 1) for g in proto.graphs
            ]  # fmt: skip
        if kind in (13, 14):  # a type: no operator here takes one
            return None
        raise self.wrong(f"{what} is of a kind, {kind}, that is not known here")

    def text(self, data: bytes, what: str) -> str:
        """A text of the file."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.wrong(f"{what} is no text: {error}") from error

    def constant(self, node: Node) -> np.ndarray | None:
        """The value of a Constant node; None where it has none that is read here, which the list of operators then says."""
        if len(node.outputs) != 1 or node.inputs or len(node.attributes) != 1:
            raise self.wrong(f"{node} should have one attribute, its value, and one output")
        ((name, value),) = node.attributes.items()
        types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64,
                 "value_string": object, "value_strings": object}  # fmt: skip
        if name == "value" and isinstance(value, np.ndarray):
            return value
        if name not in types or isinstance(value, (Graph, np.ndarray)):
            return None
        try:
            return np.array(value, types[name])
        except (TypeError, ValueError, OverflowError) as error:
            raise self.wrong(f"{node}: {name} is {value!r}") from error

    def value(self, proto: Any) -> Value:
        """An input or output."""
        name, kind = self.name(proto.name), proto.type.WhichOneof("value")
        if kind == "tensor_type":
            of = proto.type.tensor_type
            if of.elem_type and of.elem_type not in TYPES:
                raise self.wrong(f"{proto.name!r} is of a type, {of.elem_type}, that is not known here")
            shape = None
            if of.HasField("shape"):
                shape = tuple(
                    (d.dim_value if d.dim_value >= 0 else None)  # exporters write -1 and "?" for what is free
                    if d.WhichOneof("value") == "dim_value"
                    else (None if d.dim_param == "?" else self.name(d.dim_param)) or None
                    for d in of.shape.dim
                )
            return Value(name, TYPES.get(of.elem_type, ""), shape)
        return Value(name, (kind or "").removesuffix("_type"), None)

    # -- arrays -------------------------------------------------------------------------------------------------------
    def array(self, proto: Any, what: str) -> np.ndarray:
        """A tensor of the file. What its shape says is compared with what is there before memory is taken."""
        if proto.data_type not in TYPES:
            raise self.wrong(f"{what} is of a type, {proto.data_type}, that is not known here")
        if proto.HasField("segment"):
            raise self.wrong(f"{what} is stored in segments, which are not read here")
        kind, shape = TYPES[proto.data_type], tuple(proto.dims)
        if any(s < 0 for s in shape) or len(shape) > 32:
            raise self.wrong(f"{what} has the shape {shape}")
        stored = np.dtype("uint16" if kind == "bfloat16" else object if kind == "string" else kind)
        count = math.prod(shape)
        if proto.data_location == 1:
            found = self.external(proto, what, count, stored)
        elif proto.HasField("raw_data") and kind != "string":
            self.check_size(what, shape, count * stored.itemsize, len(proto.raw_data), "bytes")
            found = np.frombuffer(proto.raw_data, stored.newbyteorder("<")).astype(stored, copy=False)
        else:
            data = getattr(proto, FIELDS.get(kind, "int32_data"))
            self.check_size(what, shape, count, len(data), "values")
            if kind == "string":
                found = np.empty(count, object)
                found[:] = [self.text(one, what) for one in data]
            elif kind == "float16":
                found = np.array(data, np.int32).astype(np.uint16).view(np.float16)
            else:
                found = np.array(data, np.int32 if kind not in FIELDS else None).astype(stored)
        if kind == "bfloat16":  # the upper half of a float32
            found = (found.astype(np.uint32) << 16).view(np.float32)
        return found.reshape(shape)

    def check_size(self, what: str, shape: Any, wanted: int, there: int, unit: str) -> None:
        """An error where a shape wants more or less than is stored."""
        if wanted != there:
            raise self.wrong(f"{what} has the shape {shape}, which takes {wanted:,} {unit}, and {there:,} are there")

    def external(self, proto: Any, what: str, count: int, stored: Any) -> np.ndarray:
        """A tensor whose values lie in a file beside the model's."""
        entries = {one.key: one.value for one in proto.external_data}
        if self.folder is None:
            raise self.wrong(f"{what} lies in another file, {entries.get('location')!r}: load the model by its path")
        if stored.hasobject:
            raise self.wrong(f"{what} is of texts, which external files do not hold")
        folder = self.folder.resolve()
        try:
            file = (folder / entries["location"]).resolve()
            start, length = int(entries.get("offset", 0)), int(entries.get("length", count * stored.itemsize))
            if not file.is_relative_to(folder):
                raise self.wrong(
                    f"{what} lies in {entries['location']!r}, which is outside the model's folder, {folder}"
                )
            if not file.is_file():
                raise self.wrong(f"{what} lies in {entries['location']!r}, and there is no such file in {folder}")
            self.check_size(what, tuple(proto.dims), count * stored.itemsize, length, "bytes")
            if start < 0 or start + length > os.path.getsize(file):
                raise self.wrong(
                    f"{what} goes from byte {start:,} to {start + length:,} of {file.name}, which has {os.path.getsize(file):,}"
                )
            return np.fromfile(file, stored.newbyteorder("<"), count, offset=start).astype(stored, copy=False)
        except (KeyError, ValueError, OSError) as error:
            raise self.wrong(f"{what}: its external file cannot be read ({error!r})") from error


def read(source: Any) -> tuple[Graph, str]:
    """The graph of a file, its path, or its bytes, checked but for its operators; and what errors call the file.

    CheckpointError for what is no ONNX file, is damaged, or holds what is not read here.
    """
    onnx = library()
    message = importlib.import_module("google.protobuf.message")
    folder = None
    if isinstance(source, (bytes, bytearray, memoryview)):
        where, data = "the model", bytes(source)
    elif hasattr(source, "SerializeToString"):
        where, data = "the model", source.SerializeToString()
    else:
        if not isinstance(source, (str, os.PathLike)):
            raise ConfigurationError(f"load takes a path or the bytes of a file, not {source!r}")
        path = as_path(source)
        where, folder = str(path), path.parent
        if why := why_no_file(path):
            raise CheckpointError(why)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (message.DecodeError, UnicodeDecodeError, RuntimeError) as error:
        raise CheckpointError(f"{where} is no ONNX file, or is damaged: restore it from a copy") from error
    if not proto.HasField("graph") or not len(proto.graph.output):
        raise CheckpointError(f"{where} is no ONNX file, or is damaged: it holds no graph with outputs")
    opsets = {("" if one.domain == "ai.onnx" else one.domain): one.version for one in proto.opset_import}
    reader = Reader(where, folder, opsets)
    for domain in opsets:
        reader.name(domain)
    for domain, version in opsets.items():
        if domain in NEWEST and not 1 <= version <= NEWEST[domain]:
            raise reader.wrong(
                f"it uses operator set {version} of {domain or 'ai.onnx'}, and 1 to {NEWEST[domain]} are known here: convert it "
                "with onnx.version_converter, or update clnn"
            )
    if len(proto.functions):
        raise reader.wrong(
            "it defines functions of its own: inline them with onnx.inliner.inline_local_functions, and load what comes of it"
        )
    graph = reader.graph(proto.graph)
    told = [one.value for one in proto.metadata_props if one.key == "statistics" and isinstance(one.value, str)]
    graph.written, graph.statistics = proto.producer_name == "clnn", {*"\n".join(told).split("\n")}
    check(graph, where)
    return graph, where


def check(graph: Graph, where: str, outer: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Bring nodes into an order in which each follows what it reads. CheckpointError for cycles and for unknown names."""
    names = [value.name for value in graph.inputs]
    known = {*outer, *graph.constants, *names}
    gives: dict[str, Node] = {}
    for node in graph.nodes:
        for name in filter(None, node.outputs):
            if name in gives or name in graph.constants or name in names:
                raise CheckpointError(f"{where}: {node} gives {name!r}, which is there already")
            gives[name] = node
    if len(set(names)) < len(names) or any(not name for name in names):
        raise CheckpointError(f"{where}: the inputs have the names {names}, and each needs one of its own")
    waiting, ordered = graph.nodes, []
    while waiting:
        left = []
        for node in waiting:
            if node.reads() <= known:
                ordered.append(node)
                known |= {*filter(None, node.outputs)}
            else:
                left.append(node)
        if len(left) == len(waiting):
            for node in left:
                for name in sorted(node.reads() - known):
                    if name not in gives:
                        raise CheckpointError(f"{where}: {node} reads {name!r}, which nothing gives")
            raise CheckpointError(f"{where}: {left[0]} is in a cycle: it reads {sorted(left[0].reads() - known)}")
        waiting = left
    graph.nodes = ordered
    for value in graph.outputs:
        if value.name not in known:
            raise CheckpointError(f"{where}: the output {value.name!r} is given by no node")
    for node in ordered:
        for inner in node.graphs():
            check(inner, where, known)
