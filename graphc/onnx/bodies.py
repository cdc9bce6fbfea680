"""Functions: the decompositions that ONNX itself gives for its operators, and attributes as Python values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphc.graph.node import Node
from graphc.onnx.files import array_of
from graphc.onnx.package import onnx_package
from graphc.onnx.site import UnsupportedError
from graphc.onnx.values import Known, Listed, Value


def attribute_value(onnx: Any, attribute: Any) -> Any:
    """Return an attribute's value as Python has it: texts as str, tensors as arrays."""
    if attribute.type == onnx.AttributeProto.TENSOR:
        return array_of(onnx, attribute.t, attribute.name)
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if attribute.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS):
        return list(value)
    return (
        [v.decode(errors="replace") for v in value]
        if attribute.type == onnx.AttributeProto.STRINGS
        else value
    )


def type_proto(value: Value) -> Any:
    """Return the type of a value as ONNX writes it."""
    onnx = onnx_package()
    if isinstance(value, Listed):
        types = [type_proto(v) for v in value.items] or [onnx.TypeProto()]
        return onnx.helper.make_sequence_type_proto(types[0])
    dtype = np.dtype(value.dtype) if isinstance(value, Node) else value.array.dtype
    if isinstance(value, Known) and value.symbolic:
        dtype = np.dtype(np.int64)
    shape = value.shape if isinstance(value, Node) else value.array.shape
    sizes = [d if isinstance(d, int) else str(d) for d in shape]
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(dtype), sizes)


def _schema(node: Any, domain: str, version: int) -> Any:
    onnx = onnx_package()
    try:
        return onnx.defs.get_schema(node.op_type, version, domain)
    except (onnx.defs.SchemaError, TypeError):  # the latter for a name that is no text
        return None


def schema_defaults(node: Any, domain: str, version: int) -> dict[str, Any]:
    """Return the attributes of an operator that have a default."""
    onnx, schema = onnx_package(), _schema(node, domain, version)
    attributes = schema.attributes.values() if schema is not None else ()
    return {a.name: attribute_value(onnx, a.default_value) for a in attributes if a.default_value.type}


def check_attributes(node: Any, domain: str, version: int) -> None:
    """Refuse attributes of another type than the operator's, which a rule could not read.

    Raises:
        UnsupportedError: there is one.
    """
    schema = _schema(node, domain, version)
    for attribute in node.attribute if schema is not None else ():
        known = schema.attributes.get(attribute.name)
        if known is None or attribute.ref_attr_name or attribute.type == int(known.type.value):
            continue
        kind = onnx_package().AttributeProto.AttributeType.Name(attribute.type)
        raise UnsupportedError(f"its attribute {attribute.name!r} is {kind}; {known.type.name} is expected")


def decomposition(node: Any, domain: str, version: int, types: Sequence[Any]) -> Any:
    """Return the function that ONNX defines an operator by, or None where there is none."""
    onnx, schema = onnx_package(), _schema(node, domain, version)
    if schema is None:
        return None
    function = onnx.FunctionProto()
    if schema.has_function:
        fitting = [v for v in schema.function_opset_versions if v <= version]
        if not fitting:
            return None
        function.ParseFromString(schema.get_function_with_opset_version(max(fitting)))
    elif schema.has_context_dependent_function:
        fitting = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        if not fitting:
            return None
        given = [(t if t is not None else onnx.TypeProto()).SerializeToString() for t in types]
        made = schema.get_context_dependent_function_with_opset_version(
            max(fitting), node.SerializeToString(), given
        )
        function.ParseFromString(made)
    else:
        return None
    return function if function.node else None
