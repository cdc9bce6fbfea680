"""What an argument of a command may name: a ready-made net, or something in a Python file."""

from __future__ import annotations

import ast
import inspect
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import graphc as gc
from graphc.cli.onnx_nets import is_onnx
from graphc.errors import GraphcError, GraphError, UnknownNameError
from graphc.layout import Layout

METAVAR = "NET"
SYNTAX = """\
NET is model:NAME, FILE.py:NAME, FILE.py or FILE.onnx. model:resnet18 is a function of gc.models; keywords follow it
after commas, as in model:vgg,depth=16,norm=True, and image=(C,H,W) is the shape of its input (with parentheses, the
shell wants quotes). NAME in FILE.py is a compiled module, a tensor, a dict of named tensors, or a function without
arguments that returns one of these; the file is run to get it. FILE.py alone is the only module in it.
FILE.onnx is a model of the ONNX format; nothing in it is run."""

Tensors: TypeAlias = dict[str, gc.Tensor]

_MODEL = "model:"
_IMAGES = {
    "lenet": (1, 32, 32), "lenet_1998": (1, 32, 32), "mlp": (1, 32, 32), "resnet_cifar": (3, 32, 32),
    "alexnet_2012": (3, 227, 227),
}  # fmt: skip
_USUAL_IMAGE = (3, 224, 224)


def find(place: str) -> gc.Module | Tensors:
    """Return the module or the named tensors at ``model:NAME``, ``FILE.py:NAME`` or ``FILE.onnx``.

    Raises: UnknownNameError, GraphError, and what is wrong with the net.
    """
    if is_onnx(place):
        return dict(gc.onnx.load(place).outputs)
    return model_outputs(place) if is_model(place) else _in_file(place)


def is_model(place: str) -> bool:
    """Whether a place names a ready-made net."""
    return place.startswith(_MODEL)


def model_name(place: str) -> str:
    """Return the name of a ready-made net, without its keywords."""
    return place.removeprefix(_MODEL).partition(",")[0]


def model_outputs(place: str) -> Tensors:
    """Return the outputs of a ready-made net, on the input ``x``.

    Raises: UnknownNameError, GraphError, and what the net refuses.
    """
    name, _, text = place.removeprefix(_MODEL).partition(",")
    known = [n for n in gc.models.__all__ if inspect.isfunction(getattr(gc.models, n))]
    if name not in known:
        raise UnknownNameError(f"{place}: no ready-made net is called {name!r}; there are {', '.join(known)}")
    function = getattr(gc.models, name)
    keywords = _keywords(place, text)
    image = keywords.pop("image", _IMAGES.get(name, _USUAL_IMAGE))
    takes = ["image", *list(inspect.signature(function).parameters)[1:]]
    unknown = [key for key in keywords if key not in takes]
    if unknown:
        raise UnknownNameError(f"{place}: {name} takes {', '.join(takes)}; got {', '.join(unknown)}")
    if not isinstance(image, tuple) or len(image) != 3:
        raise GraphError(f"{place}: expected image=(C,H,W), got {image!r}")
    try:
        logits: Any = function(gc.input("x", ("N", *image)), **keywords)
    except GraphcError:
        raise
    except TypeError as error:  # such as a number where the net wants a sequence
        raise GraphError(f"{place}: {name} does not take these values: {error}") from error
    return {"logits": logits} if isinstance(logits, gc.Tensor) else logits._asdict()


def shapes_of(found: gc.Module | Tensors) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of all parameters and running statistics; nothing is compiled for it."""
    if isinstance(found, gc.Module):
        known = (*found.manifest["params"], *found.manifest["states"])
        return {slot["name"]: tuple(slot["shape"]) for slot in known if not slot["constant"]}
    layout = Layout(found, set(), None, "float32")
    slots = (*layout.slots(layout.params), *layout.slots(layout.states))
    return {slot.name: slot.shape for slot in slots if not slot.constant}


def _keywords(place: str, text: str) -> dict[str, Any]:
    """Return ``depth=16,norm=True`` as a dict: the text is that of a call's arguments, all of them literals."""
    try:
        call = ast.parse(f"net({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        message = f"{place}: expected {_MODEL}NAME,KEYWORD=VALUE,... with numbers, True, False or tuples"
        raise GraphError(message) from None


def _in_file(place: str) -> gc.Module | Tensors:
    file, colon, name = place.rpartition(":")
    if not colon and place.endswith(".py"):
        file, name = place, ""
    path = Path(file)
    if not path.is_file() or not (name.isidentifier() or path == Path(place)):
        raise UnknownNameError(
            f"{place}: expected FILE.py:NAME with the name of a module or a tensor in it, FILE.onnx, or "
            f"{_MODEL}NAME"
        )
    # The file may import its neighbours, as when Python runs it.
    sys.path.insert(0, str(path.absolute().parent))
    try:
        names = runpy.run_path(str(path), run_name="graphc_inspected")
    except SyntaxError as error:
        raise GraphError(f"{path}: {error}") from error
    finally:
        sys.path.pop(0)
    if not name:
        modules = [key for key, value in names.items() if isinstance(value, gc.Module)]
        if len(modules) != 1:
            known = ", ".join(modules) or "none"
            raise UnknownNameError(
                f"{path} defines {len(modules)} modules ({known}); name what is meant: {path}:NAME"
            )
        name = modules[0]
    if name not in names:
        raise UnknownNameError(f"{path} defines no {name!r}")
    found: Any = names[name]
    return _checked(found() if callable(found) else found, place)


def _checked(found: Any, place: str) -> gc.Module | Tensors:
    if isinstance(found, gc.Module):
        return found
    if isinstance(found, gc.Tensor):
        return {"out": found}
    if isinstance(found, Mapping) and found and all(isinstance(v, gc.Tensor) for v in found.values()):
        return dict(found)
    raise GraphError(f"{place} is {type(found).__name__}; expected a module, a tensor or a dict of tensors")
