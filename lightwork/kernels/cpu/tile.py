"""The micro-kernel: some rows times one block of weights, added to what is there.

    out[m, n] += sum over k of x[m, k] * w[k, n]        m < rows, n < 16 * vectors; = where it is fresh

Weights lie in the order they are read, one input (or two, or four) after another, each for all outputs of
the block: memory is read as one stream. It is emitted for a format and this processor, in vectors (lanes.py)
or in matrix registers (amx.py), and called by its address.

Formats, by what is multiplied:
  F32 BF16 F16     weights widened to float32, times float32
  BF16_DOT         pairs of bfloat16, times bfloat16, added in float32
  INT8_DOT         pairs of bytes, times int16, added in int32: exact, and so is out
  CODE8 CODE4      codes of a group of inputs widened (4 bits: any table of 16 values), times float32;
                   the group's scale is applied to its sum, and an offset, if there is one, to the inputs' sum
  CODE8_DOT CODE4_DOT   the same codes times bytes with a scale per row and group, added in int32: exact
"""

from __future__ import annotations

from llvmlite import ir

from lightwork.kernels.cpu import amx, lanes
from lightwork.kernels.cpu.isa import Isa
from lightwork.kernels.cpu.machine_code import ENTRY
from lightwork.kernels.cpu.vectors import I64

NUM_ARGS = 14


def emit(form: int, vectors: int, affine: bool, isa: Isa, *, streamed: bool = True) -> str:
    """A format's micro-kernel as LLVM IR; its arguments are those of `primitives.multiply` but the first.

    streamed: the weights of successive calls follow one another in memory, as a matrix's do and pages do not.
    """
    module = ir.Module(name=ENTRY)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * NUM_ARGS), ENTRY)
    b = ir.IRBuilder(function.append_basic_block("entry"))
    *addresses, rows, inputs, group, fresh, ahead = list(function.args)
    asked = (form, isa, 0, vectors, affine, streamed)
    first = b.trunc(fresh, ir.IntType(1))
    emission = lanes.Emission._make([*asked, *addresses, inputs, group, first, ahead, I64(0)])
    by_rows = amx.by_rows if amx.computes(emission) else lanes.by_rows
    by_rows(b, emission, rows)
    b.ret_void()
    return str(module)
