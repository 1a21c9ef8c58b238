"""Vectors of floats as LLVM code: a kernel's arithmetic, written with Python's operators.

Nothing is computed here. Each operation appends instructions for a vector of neighbouring elements to the function that
the builder writes. Memory holds any float dtype; arithmetic is float32, or float64 for float64 states.
"""

from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir
import torch

VECTOR_BYTES = 64
"""The width of the widest registers (AVX-512); LLVM splits vectors for narrower ones."""

_ELEMENTS: dict[torch.dtype, Any] = {
    torch.float64: ir.DoubleType(),
    torch.float32: ir.FloatType(),
    torch.float16: ir.HalfType(),
    torch.bfloat16: ir.IntType(16),  # the upper half of a float32; llvmlite has no type for it
}

_INT32 = ir.IntType(32)

_EXP2 = (1.3264727e-3, 9.6715128e-3, 5.5507337e-2, 2.4022242e-1, 6.9314698e-1, 1.0)
"""2^z for |z| <= 1/2 as a polynomial, highest power first, with a relative error of at most 1e-7 (Lawson's minimax)."""

_LOG2E = 1.44269502162933349609375
_LOG2E_REST = 1.925962991126617e-8
"""log2(e) as float32, and the remainder."""

_ROUNDER = 1.5 * 2**23
"""Added to a float32 below 2^22, it puts the nearest integer into the sum's last bits."""


@dataclass(frozen=True)
class Lanes:
    """A vector type: `width` floats of the dtype `state`, float32 or float64, and the builder that writes its code."""

    builder: Any
    width: int
    state: torch.dtype

    @property
    def type(self) -> Any:
        """LLVM's type of such a vector."""
        return ir.VectorType(_ELEMENTS[self.state], self.width)

    def constant(self, value: float) -> "Vector":
        """`value` in every lane, rounded to the state's dtype."""
        rounded = torch.tensor(value, dtype=self.state).item()
        return Vector(self, ir.Constant(self.type, [rounded] * self.width))

    def load(self, array: Any, index: Any, stored: torch.dtype) -> "Vector":
        """Loads elements from `index` on of the array at the address `array`, whose dtype is `stored`."""
        b, element = self.builder, _ELEMENTS[stored]
        address = b.gep(array, [index], source_etype=element)
        value = b.load(address, align=stored.itemsize, typ=ir.VectorType(element, self.width))
        if stored == torch.bfloat16:
            bits = b.shl(b.zext(value, self._integers()), self._integers(16))
            value, stored = b.bitcast(bits, ir.VectorType(_ELEMENTS[torch.float32], self.width)), torch.float32
        if stored.itemsize < self.state.itemsize:
            value = b.fpext(value, self.type)
        return Vector(self, value)

    def store(self, vector: "Vector", array: Any, index: Any, stored: torch.dtype) -> None:
        """Stores `vector` there, each element rounded to the nearest number of the dtype `stored`."""
        b, element, value = self.builder, _ELEMENTS[stored], vector.value
        through = torch.float32 if stored == torch.bfloat16 else stored
        if through.itemsize < self.state.itemsize:
            value = b.fptrunc(value, ir.VectorType(_ELEMENTS[through], self.width))
        if stored == torch.bfloat16:
            value = self._upper_half(value)
        b.store(value, b.gep(array, [index], source_etype=element), align=stored.itemsize)

    def _upper_half(self, value: Any) -> Any:
        """float32 to bfloat16, ties to even; NaN stays NaN."""
        b, number = self.builder, self._integers
        bits = b.bitcast(value, number())
        last_kept = b.and_(b.lshr(bits, number(16)), number(1))
        rounded = b.add(bits, b.add(last_kept, number(0x7FFF)))
        rounded = b.select(b.fcmp_unordered("uno", value, value), b.or_(bits, number(0x400000)), rounded)
        return b.trunc(b.lshr(rounded, number(16)), ir.VectorType(_ELEMENTS[torch.bfloat16], self.width))

    def _integers(self, value: int | None = None) -> Any:
        """The type of `width` 32-bit integers, or `value` in each of them."""
        kind = ir.VectorType(_INT32, self.width)
        return kind if value is None else ir.Constant(kind, [value] * self.width)

    def intrinsic(self, name: str, *operands: "Vector") -> "Vector":
        """Calls one of LLVM's intrinsic functions, lane by lane."""
        full = f"llvm.{name}.v{self.width}f{8 * self.state.itemsize}"
        module = self.builder.module
        kind = ir.FunctionType(self.type, [self.type] * len(operands))
        function = module.globals.get(full) or ir.Function(module, kind, full)
        return Vector(self, self.builder.call(function, [each.value for each in operands]))


@dataclass(frozen=True)
class Vector:
    """A value in a kernel's code. A number in an operation with it stands for a vector of that number."""

    lanes: Lanes
    value: Any

    def __add__(self, other: "Vector | float") -> "Vector":
        return self._with("fadd", self, other)

    def __sub__(self, other: "Vector | float") -> "Vector":
        return self._with("fsub", self, other)

    def __rsub__(self, other: float) -> "Vector":
        return self._with("fsub", other, self)

    def __mul__(self, other: "Vector | float") -> "Vector":
        return self._with("fmul", self, other)

    def __rtruediv__(self, other: float) -> "Vector":
        return self._with("fdiv", other, self)

    def times_plus(self, factor: "Vector", addend: "Vector | float") -> "Vector":
        """`self * factor + addend`, rounded once."""
        return self.lanes.intrinsic("fma", self, factor, self._vector(addend))

    def clamp(self, low: float, high: float) -> "Vector":
        """Limits the value to [`low`, `high`]; NaN stays NaN."""
        b, value = self.lanes.builder, self.value
        for worse, bound in (("<", low), (">", high)):
            limit = self.lanes.constant(bound).value
            value = b.select(b.fcmp_ordered(worse, value, limit), limit, value)
        return Vector(self.lanes, value)

    def sigmoid(self) -> tuple["Vector", "Vector"]:
        """1 / (1 + exp(-self)), and 1 minus that, without loss of digits near 0.

        In float32 the relative error near 0 is some 2e-7, and the same on every processor.
        """
        return self._sigmoid(1.0)

    def tanh(self) -> tuple["Vector", "Vector"]:
        """tanh(self), with the absolute error of numbers near 1, and its derivative 1 - tanh(self)^2 = 4 s (1 - s)."""
        share, rest = self._sigmoid(2.0)
        return share - rest, share * rest * 4.0

    def _sigmoid(self, factor: float) -> tuple["Vector", "Vector"]:
        """The sigmoid of `factor` times self, and 1 minus that; `factor` is a power of 2."""
        if self.lanes.state == torch.float64:
            power = self.lanes.intrinsic("exp", (self * -factor).clamp(-700.0, 700.0))
        else:
            power = self._exp(-factor)
        share = 1 / (power + 1)
        return share, power * share

    def _exp(self, factor: float) -> "Vector":
        """e^(factor * self) in float32, the exponent limited to [-87, 87]; `factor` is a power of 2 or minus one."""
        lanes, b = self.lanes, self.lanes.builder
        limit = 87.0 / abs(factor)
        exponent, log2e = self.clamp(-limit, limit), lanes.constant(_LOG2E * factor)
        rounder = exponent.times_plus(log2e, _ROUNDER)
        # log2(e) in two parts, so that the rest of the product keeps its digits.
        rest = exponent.times_plus(log2e, _ROUNDER - rounder)
        rest = exponent.times_plus(lanes.constant(_LOG2E_REST * factor), rest)
        power = lanes.constant(_EXP2[0])
        for coefficient in _EXP2[1:]:
            power = power.times_plus(rest, coefficient)
        integer = b.shl(b.bitcast(rounder.value, lanes._integers()), lanes._integers(23))
        scale = b.add(integer, lanes._integers(127 << 23))  # the bits of 2^integer
        return power * Vector(lanes, b.bitcast(scale, lanes.type))

    def _vector(self, other: "Vector | float") -> "Vector":
        return other if isinstance(other, Vector) else self.lanes.constant(other)

    def _with(self, operation: str, left: "Vector | float", right: "Vector | float") -> "Vector":
        apply = getattr(self.lanes.builder, operation)
        return Vector(self.lanes, apply(self._vector(left).value, self._vector(right).value))
