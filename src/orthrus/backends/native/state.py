"""The state of packed linear maps as plain values and tensors, to store them and to make them again without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from orthrus.backends.interface import ExecutableLinear, RowRule
from orthrus.backends.native.linears import (
    DequantLinear,
    NativeGroupedLinear,
    NativeInt8Linear,
    PanelLinear,
    TiledLinear,
)
from orthrus.model.linear import Linear

FORMS: dict[str, type[ExecutableLinear]] = {
    form.__name__: form for form in (TiledLinear, PanelLinear, DequantLinear, NativeInt8Linear, NativeGroupedLinear)
}
State = tuple[dict[str, Any], dict[str, Tensor]]
"""Plain values (`form`, `rule`, and attributes by name) and tensors by attribute."""


def state_of(linear: nn.Module) -> State | None:
    """The state of a map; None for a form that is not in `FORMS`."""
    if not isinstance(linear, ExecutableLinear) or FORMS.get(type(linear).__name__) is not type(linear):
        return None
    own = {name: value for name, value in vars(linear).items() if not name.startswith("_")}
    tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in own.items() if type(value) in (int, str, float) and name != "training"}
    return {"form": type(linear).__name__, "rule": asdict(linear.rule), "plain": plain}, tensors


def restored(state: State, plain: Linear, kernel_of: Callable[[type[ExecutableLinear]], Any]) -> ExecutableLinear:
    """The map of a state. `plain` gives shape and bias, and no weights; `kernel_of` the C function of a form.

    Raises KeyError where the state is that of another version.
    """
    values, tensors = state
    form = FORMS[values["form"]]
    linear = form.__new__(form)
    ExecutableLinear.__init__(linear, plain, values["plain"]["stored_bytes"])
    for name, value in (*values["plain"].items(), *tensors.items()):
        setattr(linear, name, value)
    linear.rule = RowRule(**values["rule"])
    linear._kernel = kernel_of(form)
    return linear
