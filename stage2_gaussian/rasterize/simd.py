"""Eight numbers at a time in numba: a type for SIMD registers, because numba vectorises only the simplest loops.

In jitted code `Lanes` behave like scalars: "float" (32 bits) under + - * / and comparisons, "int" (32 bits) and "bool"
under | and &, and all in the functions below. A scalar beside them counts for every lane. Products and sums contract to
fused multiply-adds. Indices are not checked. numba's cache does not see changes in this file: save the file that uses it
too.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 8
_ELEMENTS = {"float": ir.FloatType(), "int": ir.IntType(32), "bool": ir.IntType(1)}
_SCALARS = {"float": types.float32, "int": types.int32}
_CONTRACT = ("contract",)


class Lanes(types.Type):
    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(name=f"Lanes({kind})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, ir.VectorType(_ELEMENTS[fe_type.kind], LANES))


FLOAT, INT, BOOL = Lanes("float"), Lanes("int"), Lanes("bool")


def _spread(builder, scalar):
    """Scalar -> all lanes."""
    vector = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros)


def _as_lanes(context, builder, value, kind, lanes):
    """`value` of numba type `kind`, a scalar or Lanes already, as Lanes of type `lanes`."""
    if isinstance(kind, Lanes):
        return value
    return _spread(builder, context.cast(builder, value, kind, _SCALARS[lanes.kind]))


def _common(a, b):
    """The Lanes type of an operation on a and b, of which at least one is Lanes; None where there is none."""
    lanes = a if isinstance(a, Lanes) else b
    if isinstance(lanes, Lanes) and all(x == lanes or isinstance(x, types.Number) for x in (a, b)):
        return lanes
    return None


def _operator(function, result, emit):
    """Teach numba `function` on Lanes: `result` maps their type to that of the outcome, `emit` builds the instruction."""

    @type_callable(function)
    def _typing(context):
        def typer(a, b):
            lanes = _common(a, b)
            return result(lanes) if lanes is not None else None

        return typer

    def implementation(context, builder, sig, args):
        lanes = _common(*sig.args)
        return emit(builder, *(_as_lanes(context, builder, x, kind, lanes) for x, kind in zip(args, sig.args)))

    for signature in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(function, *signature)(implementation)


def _itself(lanes):
    return lanes


_operator(operator.add, _itself, lambda builder, a, b: builder.fadd(a, b, flags=_CONTRACT))
_operator(operator.sub, _itself, lambda builder, a, b: builder.fsub(a, b, flags=_CONTRACT))
_operator(operator.mul, _itself, lambda builder, a, b: builder.fmul(a, b, flags=_CONTRACT))
_operator(operator.truediv, _itself, lambda builder, a, b: builder.fdiv(a, b))
_operator(operator.or_, _itself, lambda builder, a, b: builder.or_(a, b))
_operator(operator.and_, _itself, lambda builder, a, b: builder.and_(a, b))
for _function, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")):
    _operator(_function, lambda lanes: BOOL, lambda builder, a, b, sign=_sign: builder.fcmp_ordered(sign, a, b))


@intrinsic
def where(context, mask, a, b):
    """Lane by lane a where mask, else b; float Lanes if both are scalars."""
    lanes = _common(a, b) or FLOAT

    def codegen(context, builder, sig, args):
        first, second = (_as_lanes(context, builder, x, kind, lanes) for x, kind in zip(args[1:], sig.args[1:]))
        return builder.select(args[0], first, second)

    return lanes(mask, a, b), codegen


@intrinsic
def any_lane(context, mask):
    """True if any lane of a bool Lanes is."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return types.boolean(mask), codegen


@intrinsic
def square_root(context, x):
    """Of each lane; NaN where it is negative."""

    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(args[0].type, [args[0].type])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32"), args)

    return FLOAT(x), codegen


@intrinsic
def total(context, x):
    """Sum of the lanes, halves first."""

    def codegen(context, builder, sig, args):
        vector, width = args[0], LANES
        while width > 1:
            width //= 2
            low, high = (ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(first, first + width)))
                         for first in (0, width))
            undefined = ir.Constant(vector.type, ir.Undefined)
            vector = builder.fadd(builder.shuffle_vector(vector, undefined, low),
                                  builder.shuffle_vector(vector, undefined, high))
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return types.float32(x), codegen


def _place(context, builder, array_type, array, index, index_type, pointee):
    """Pointer to element `index` of a contiguous array as if it held `pointee`."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, value=array).data
    offset = context.cast(builder, index, index_type, types.intp)
    return builder.bitcast(builder.gep(data, [offset]), pointee.as_pointer())


@intrinsic
def load(context, array, index):
    """array[index : index + LANES] of a contiguous float32 array, indexed as if it were flat."""

    def codegen(context, builder, sig, args):
        vector = ir.VectorType(ir.FloatType(), LANES)
        place = _place(context, builder, sig.args[0], args[0], args[1], sig.args[1], vector)
        return builder.load(place, align=4)

    return FLOAT(array, index), codegen


@intrinsic
def store(context, array, index, lanes):
    """array[index : index + LANES] = lanes, of a contiguous array of 32-bit elements, indexed as if it were flat."""

    def codegen(context, builder, sig, args):
        place = _place(context, builder, sig.args[0], args[0], args[1], sig.args[1], args[2].type)
        builder.store(args[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, index, lanes), codegen


@intrinsic
def broadcast(context, array, index):
    """array[index] of a contiguous float32 array, indexed as if it were flat, in all lanes."""

    def codegen(context, builder, sig, args):
        place = _place(context, builder, sig.args[0], args[0], args[1], sig.args[1], ir.FloatType())
        return _spread(builder, builder.load(place, align=4))

    return FLOAT(array, index), codegen


@intrinsic
def bit_lanes(context, position):
    """1 << position in all lanes of int Lanes."""

    def codegen(context, builder, sig, args):
        shift = context.cast(builder, args[0], sig.args[0], types.int32)
        return _spread(builder, builder.shl(ir.Constant(ir.IntType(32), 1), shift))

    return INT(position), codegen


@intrinsic
def no_bits(context):
    """Zeros of int Lanes."""

    def codegen(context, builder, sig, args):
        return ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)

    return INT(), codegen


@intrinsic
def lowest_bit(context, bits):
    """Position of the lowest set bit of a uint64 that is not zero."""

    def codegen(context, builder, sig, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(bits), codegen


@intrinsic
def next_task(context, counter):
    """counter[0]++ as one atomic step: hands each thread a task of its own."""

    def codegen(context, builder, sig, args):
        data = cgutils.create_struct_proxy(sig.args[0])(context, builder, value=args[0]).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), codegen
