"""Kernels over steps, sequences and hidden units, compiled for this processor and run on torch's own threads.

A kernel is a Python function that writes the code for some neighbouring hidden units of one sequence at one step
(`At`); the loops around it are written here. LLVM, which is part of the package llvmlite, compiles it when it is first
needed for certain dtypes, in a twentieth of a second and without any other compiler. Letters as in `reference.py`.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import llvmlite.binding as llvm
import llvmlite.ir as ir
import torch
from torch import Tensor

from train.sru.lanes import VECTOR_BYTES, Lanes, Vector

GRAIN = 8192
"""Elements that make another thread worthwhile; some ten microseconds of work."""

PIECES_PER_THREAD = 4
"""Smallest number of pieces for each thread, so that none waits long for the last one."""

LINE_UNITS = 64
"""Hidden units that fill whole lines of the processor's cache in any dtype: pieces are multiples of it."""

_NAME = "kernel"
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_INT64 = ir.IntType(64)
_POINTER = ir.PointerType()

Row = Literal["step", "sequence", "shared"]


class Array(NamedTuple):
    """Layout of an array in memory, `[rows, parts, D]`: which row belongs to a step of a sequence, and its dtype."""

    rows: Row
    """`step`: rows are `[T, B]`; `sequence`: `[B]`; `shared`: one row for all."""
    parts: int
    dtype: torch.dtype


@dataclass(frozen=True)
class At:
    """Some hidden units of one sequence at one step; `at[name, part]` loads or stores their elements of an array."""

    lanes: Lanes
    arrays: Mapping[str, Array]
    addresses: Mapping[str, Any]
    rows: Mapping[Row, Any]
    hidden: Any
    unit: Any

    def __getitem__(self, key: tuple[str, int]) -> Vector:
        return self.lanes.load(*self._place(*key))

    def __setitem__(self, key: tuple[str, int], value: Vector) -> None:
        self.lanes.store(value, *self._place(*key))

    def _place(self, name: str, part: int) -> tuple[Any, Any, torch.dtype]:
        """An array's address and dtype, and the index of the first of these elements in it."""
        b, array = self.lanes.builder, self.arrays[name]
        row = b.add(b.mul(self.rows[array.rows], _INT64(array.parts)), _INT64(part))
        return self.addresses[name], b.add(b.mul(row, self.hidden), self.unit), array.dtype


@dataclass(frozen=True)
class Kernel:
    """A loop over steps, in parallel over sequences and hidden units."""

    body: Callable[[At], None]
    """Writes the code of a step."""
    last_first: bool = False
    """Whether the loop runs from the last step to the first."""
    registers: int = 1
    """How many of the widest registers a vector fills. With two, a processor need not wait for one's results before it
    goes on with the other; a body that needs most registers is slower so."""

    def __call__(self, size: tuple[int, int, int], given: Mapping[Row, Mapping[str, Tensor]]) -> None:
        """Run on contiguous arrays, `given` by kind of rows and name; `size` is T, B, D.

        A hidden unit of a sequence goes through all steps in one thread, so the result does not depend on the number of
        threads.
        """
        steps, batch, hidden = size
        units_of_rows: Mapping[Row, int] = {
            "step": steps * batch * hidden,
            "sequence": batch * hidden,
            "shared": hidden,
        }
        arrays: list[tuple[str, Array]] = []
        addresses = []
        for kind, group in given.items():
            for name, each in group.items():
                assert each.is_contiguous(), name
                arrays.append((name, Array(kind, each.numel() // units_of_rows[kind], each.dtype)))
                addresses.append(each.data_ptr())
        threads = max(1, min(torch.get_num_threads(), steps * batch * hidden // GRAIN))
        # Two threads never write to one cache line.
        pieces_of_sequence = -(-PIECES_PER_THREAD * threads // batch)
        units = -(-hidden // pieces_of_sequence // LINE_UNITS) * LINE_UNITS
        sizes = (steps, batch, hidden, units, -(-hidden // units))
        words = (ctypes.c_int64 * (1 + len(sizes) + len(addresses)))(0, *sizes, *addresses)
        _, function = _compiled(self, tuple(arrays))
        team = _team() if threads > 1 else None
        if team is None:
            function(ctypes.addressof(words))
        else:
            team(function, ctypes.addressof(words), threads, 0)


@functools.cache
def _team() -> Callable[..., None] | None:
    """Returns GOMP_parallel of the OpenMP runtime that torch has loaded: its threads are awake, no more than the cores.

    None if torch has no such library; kernels then run on one thread.
    """
    home = Path(torch.__file__).parent
    names = [str(path) for folder in ("lib", "../torch.libs") for path in sorted((home / folder).glob("lib*omp*"))]
    for name in (*names, "libgomp.so.1", "libomp.so"):
        with suppress(OSError, AttributeError):
            function = ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel
            function.argtypes = (_FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
            function.restype = None
            return function
    return None


@functools.cache
def _compiled(kernel: Kernel, arrays: tuple[tuple[str, Array], ...]) -> tuple[Any, Any]:
    """Returns the engine that keeps the machine code in memory, and the function."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    parsed = llvm.parse_assembly(str(_written(kernel, dict(arrays))))
    parsed.verify()
    passes = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, target)
    engine.finalize_object()
    return engine, _FUNCTION(engine.get_function_address(_NAME))


def _written(kernel: Kernel, arrays: Mapping[str, Array]) -> ir.Module:
    """Returns the function as LLVM code. Its argument is the address of words: a counter, sizes, the arrays' addresses.

    Each thread takes the next piece, some units of one sequence, from the counter until none is left.
    """
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_POINTER]), _NAME)
    b = ir.IRBuilder(function.append_basic_block("start"))
    words = function.args[0]

    def word(number: int, kind: Any) -> Any:
        return b.load(b.gep(words, [_INT64(number)], source_etype=_INT64), typ=kind)

    steps, batch, hidden, units, pieces = (word(number, _INT64) for number in range(1, 6))
    addresses = {name: word(number, _POINTER) for number, name in enumerate(arrays, 6)}
    state = torch.float64 if any(array.dtype == torch.float64 for array in arrays.values()) else torch.float32
    whole = Lanes(b, kernel.registers * VECTOR_BYTES // state.itemsize, state)
    single = Lanes(b, 1, state)

    take, work, end = (b.append_basic_block(name) for name in ("take", "work", "end"))
    b.branch(take)
    b.position_at_end(take)
    piece = b.atomic_rmw("add", words, _INT64(1), "monotonic")
    b.cbranch(b.icmp_signed("<", piece, b.mul(batch, pieces)), work, end)
    b.position_at_end(work)
    sequence, first = b.sdiv(piece, pieces), b.mul(b.srem(piece, pieces), units)
    beyond = b.add(first, units)
    beyond = b.select(b.icmp_signed("<", beyond, hidden), beyond, hidden)
    after_whole = b.sub(beyond, b.srem(b.sub(beyond, first), _INT64(whole.width)))
    with _loop(b, _INT64(0), steps, 1) as number:
        step = b.sub(b.sub(steps, _INT64(1)), number) if kernel.last_first else number
        row = b.add(b.mul(step, batch), sequence)
        rows: Mapping[Row, Any] = {"step": row, "sequence": sequence, "shared": _INT64(0)}
        for lanes, start, stop in ((whole, first, after_whole), (single, after_whole, beyond)):
            with _loop(b, start, stop, lanes.width) as unit:
                kernel.body(At(lanes, arrays, addresses, rows, hidden, unit))
    b.branch(take)
    b.position_at_end(end)
    b.ret_void()
    return module


@contextmanager
def _loop(b: Any, start: Any, stop: Any, by: int) -> Iterator[Any]:
    """for index in range(start, stop, by)"""
    before, head = b.block, b.append_basic_block("head")
    body, end = b.append_basic_block("body"), b.append_basic_block("next")
    b.branch(head)
    b.position_at_end(head)
    index = b.phi(_INT64)
    index.add_incoming(start, before)
    b.cbranch(b.icmp_signed("<", index, stop), body, end)
    b.position_at_end(body)
    yield index
    index.add_incoming(b.add(index, _INT64(by)), b.block)
    b.branch(head)
    b.position_at_end(end)
