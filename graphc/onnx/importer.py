"""Walks over the nodes of an ONNX graph and applies the rule of each."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from graphc.errors import GraphcError, GraphError
from graphc.graph.node import Node
from graphc.graph.source import Source, attribute_to
from graphc.initialisers import Array
from graphc.onnx import rules as _  # noqa: F401  # enters the rules
from graphc.onnx.bodies import attribute_value, check_attributes, decomposition, schema_defaults, type_proto
from graphc.onnx.files import array_of
from graphc.onnx.fold import UNFOLDED, fold, fold_moved
from graphc.onnx.names import identifier, numbered
from graphc.onnx.old import check_old
from graphc.onnx.package import onnx_package
from graphc.onnx.site import FOLDED, RULES, Site, UnsupportedError
from graphc.onnx.values import Known, Listed, Value, shape_of
from graphc.ops.leaves import Parameter, Scope, State, constant
from graphc.types import DTYPES, DType

Environment = MutableMapping[str, Value]
_UNUSED = Known(np.empty(0))  # a result without a name, which the body of a function need not compute
_OLD = 7  # operator sets before this one have other meanings
_DEEPEST = 20  # functions within functions; a model whose functions call each other has no end


class OnnxImportError(GraphError):
    """A model that cannot be imported; ``inputs`` are inputs whose values would have to be known for it."""

    inputs: tuple[str, ...] = ()


class RefusedError(Exception):
    """A node within this one was refused, and listed."""


@dataclass(frozen=True)
class Refusal:
    """A node that cannot be imported, and why."""

    name: str
    op: str
    version: int
    reason: str

    def __str__(self) -> str:
        """Return a line of the error."""
        return f"  {self.op} (opset {self.version}) {self.name!r}: {self.reason}"


@dataclass
class Progress:
    """What the parts of one import share."""

    file: str
    trainable: Sequence[str]
    freeze: Sequence[str]
    functions: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    restore_batch_norm: bool = False
    strict: bool = False  # whether a rule's own exceptions are passed on, as tests want them
    parameters: dict[str, Node] = field(default_factory=dict)
    states: dict[str, Node] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    needed: dict[str, None] = field(default_factory=dict)
    line: int = 0
    depth: int = 0

    def raise_refusals(self) -> None:
        """Raise one error that lists every node that cannot be imported.

        Raises:
            OnnxImportError: there are some.
        """
        if not self.refusals:
            return
        lines = "\n".join(map(str, self.refusals))
        count = len(self.refusals)
        error = OnnxImportError(f"{self.file}: {count} node{'s' * (count > 1)} cannot be imported:\n{lines}")
        error.inputs = tuple(self.needed)
        raise error


@dataclass
class Importer:
    """Imports the nodes of one graph, or of the body of a function, into ``values``."""

    progress: Progress
    opsets: Mapping[str, int]
    values: Environment
    given: Mapping[str, Any] = field(
        default_factory=dict
    )  # attributes of the function that this is the body of
    within: str = ""

    def nodes(self, nodes: Iterable[Any], positions: Sequence[int] = ()) -> None:
        """Import nodes in their order, each of which enters its results into the values.

        ``positions`` are those of the model's own nodes in the file, of which some may not be needed.
        """
        for k, node in enumerate(nodes):
            if positions:
                self.progress.line = positions[k] + 1
            try:
                with attribute_to(Source(self.progress.file, self.progress.line)):
                    self._node(node)
            except RefusedError:
                pass  # it is in the list, by the name that it has there
            except UnsupportedError as error:
                self._refuse(node, str(error))
                self.progress.needed |= dict.fromkeys(error.inputs)
            except GraphcError as error:
                self._refuse(node, str(error))
            except Exception as error:  # what a rule meets in a node that no checker has seen
                if self.progress.strict:
                    raise
                self._refuse(node, f"it is malformed: {type(error).__name__}: {error}")

    def materialise(self, known: Known, learned: bool = True) -> Node:
        """Return the tensor of a known array: the parameter of a weight, a constant of any other."""
        if isinstance(known, Listed):
            raise UnsupportedError("a sequence is used as a tensor")
        if known.symbolic:
            raise UnsupportedError("a shape that depends on the run-time batch is used as a tensor")
        if str(known.array.dtype) not in DTYPES:
            raise UnsupportedError(f"an array of {known.array.dtype} is not supported")
        if not known.weight:
            return constant(known.array, str(known.array.dtype))
        parameters = self.progress.parameters
        if known.weight not in parameters:
            name, scope, field = self._place(known.weight, "parameter")
            learned = learned and _matches(known.weight, self.progress.trainable)
            learned = learned and not _matches(known.weight, self.progress.freeze)
            values = Array(known.array)
            leaf = Parameter(_float_of(known.array), known.array.shape, values, scope, field, learned)
            parameters[known.weight] = leaf(name=name)
        return parameters[known.weight]

    @property
    def restore_batch_norm(self) -> bool:
        """Whether batch normalisations in inference form become those that can be trained."""
        return self.progress.restore_batch_norm

    def state(self, known: Known) -> Node:
        """Return the state that starts at the value of an initializer, under its name."""
        states = self.progress.states
        if known.weight not in states:
            name, scope, field = self._place(known.weight, "state")
            leaf = State(_float_of(known.array), known.array.shape, Array(known.array), scope, field)
            states[known.weight] = leaf(name=name)
        return states[known.weight]

    def tensor(self, value: Value) -> Node:
        """Return a value as a tensor of the graph."""
        return value if isinstance(value, Node) else self.materialise(value)

    def inline(self, graph: Any, given: Sequence[Value]) -> list[Value]:
        """Import the nodes of a graph that is an attribute; it sees the names around it."""
        onnx = onnx_package()
        own: dict[str, Value] = {t.name: Known(array_of(onnx, t, graph.name)) for t in graph.initializer}
        own.update(zip((i.name for i in graph.input), given, strict=True))
        inner = replace(
            self, values=ChainMap(own, self.values), within=self.within or graph.name or "subgraph"
        )
        return inner.body(graph.node, [o.name for o in graph.output])

    def body(self, nodes: Iterable[Any], results: Sequence[str]) -> list[Value]:
        """Import nodes and return what they are there for.

        Raises:
            RefusedError: one of them was refused.
        """
        if self.progress.depth > _DEEPEST:
            raise UnsupportedError(f"functions and graphs are nested more than {_DEEPEST} deep")
        self.progress.depth += 1
        try:
            self.nodes(nodes)
        finally:
            self.progress.depth -= 1
        missing = [name for name in results if name not in self.values]
        if missing:
            raise RefusedError
        return [self.values[name] for name in results]

    def _place(self, weight: str, kind: str) -> tuple[str, Scope, str]:
        """Return a name that is free for an initializer, and the layer and the field that it says."""
        made = (*self.progress.parameters.values(), *self.progress.states.values())
        taken = {node.name for node in made}
        name = next(n for n in numbered(identifier(weight, dots=True)) if n not in taken)
        scope, dot, last = name.rpartition(".")
        return name, Scope(kind, scope if dot else last), last if dot else ""

    def _refuse(self, node: Any, reason: str) -> None:
        name = node.name or ", ".join(node.output)
        title = f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type)
        refusal = Refusal(
            f"{self.within}/{name}" if self.within else name, title, self.opsets.get(_domain(node), 0), reason
        )
        self.progress.refusals.append(refusal)

    def _node(self, node: Any) -> None:
        key = (_domain(node), str(node.op_type))
        values = self.values
        missing = [n for n in node.input if n and n not in values]
        version = self.opsets.get(key[0], 1)
        if missing:
            return  # results of a node that was refused: that one is reported
        check_attributes(node, key[0], version)
        if key[0] == "" and version < _OLD:
            check_old(node, version, [shape_of(values[n]) if n else None for n in node.input])
        site = Site(
            key[1], node.name, version, tuple(values[n] if n else None for n in node.input),
            {a.name: value for a in node.attribute if (value := self._attribute(a)) is not None},
            max((k for k, name in enumerate(node.output, 1) if name), default=0), self,
        )  # fmt: skip
        found = self._folded(key, site, node)
        if found is None and key in RULES:
            found = RULES[key](site)
        if found is None:
            body = self._body_of(node, key, version)
            if not body:
                raise UnsupportedError("there is no rule for this operator")
            found = self._call(body, site, node)
        results: Sequence[Value] = (found,) if isinstance(found, (Node, Known)) else found
        for name, value in zip(node.output, results, strict=False):
            if name:
                values[name] = value

    def _folded(self, key: tuple[str, str], site: Site, node: Any) -> Value | Sequence[Value] | None:
        """Return the results of a node whose inputs are all known, if it can be computed now."""
        given = [v for v in site.values if v is not None]
        arrays = [v for v in given if isinstance(v, Known)]
        if len(arrays) < len(given) or any(v.weight for v in arrays):
            return None
        symbolic = any(v.symbolic for v in arrays)
        if key in FOLDED and (symbolic or not given):
            return FOLDED[key](site)
        if key in UNFOLDED or key in self.progress.functions or any(a.HasField("g") for a in node.attribute):
            return None
        if any(a.ref_attr_name for a in node.attribute):
            node = onnx_package().helper.make_node(
                node.op_type, node.input, node.output, domain=node.domain, **site.attributes
            )
        inputs = [v.array if isinstance(v, Known) else None for v in site.values]
        if symbolic:
            return fold_moved(node, inputs, self.opsets)
        try:
            return fold(node, inputs, self.opsets)
        except UnsupportedError:
            if key in RULES:
                return None
            raise

    def _body_of(self, node: Any, key: tuple[str, str], version: int) -> Any:
        """Return the function that a node stands for: one of the model's, or ONNX's own decomposition."""
        if key in self.progress.functions:
            return self.progress.functions[key]
        types = [type_proto(self.values[n]) if n else None for n in node.input]
        return decomposition(node, key[0], version, types)

    def _call(self, function: Any, site: Site, node: Any) -> list[Value]:
        """Import the body of a function in place of the node that calls it."""
        values: dict[str, Value] = {
            name: value for name, value in zip(function.input, site.values, strict=False) if value is not None
        }
        onnx = onnx_package()
        defaults = {a.name: attribute_value(onnx, a) for a in function.attribute_proto}
        opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in function.opset_import}
        given = {**defaults, **schema_defaults(node, _domain(node), site.version), **site.attributes}
        within = "/".join(filter(None, (self.within, node.name or node.op_type)))
        inner = Importer(self.progress, {**self.opsets, **opsets}, values, given, within)
        wanted = [o for o, name in zip(function.output, node.output, strict=False) if name]
        found = dict(zip(wanted, inner.body(function.node, wanted), strict=True))
        return [found.get(o, _UNUSED) for o in function.output]

    def _attribute(self, attribute: Any) -> Any:
        if attribute.ref_attr_name:
            return self.given.get(attribute.ref_attr_name)
        return attribute_value(onnx_package(), attribute)


def _domain(node: Any) -> str:
    return "" if node.domain == "ai.onnx" else str(node.domain)


def _float_of(array: np.ndarray) -> DType:
    return "float64" if array.dtype == np.float64 else "float32"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)
