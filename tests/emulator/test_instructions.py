"""Hand-written PTX of a few lines, one thread an element, with results that are known."""

from fractions import Fraction

import numpy as np
import pytest

from .short_programs import run_elementwise

ONE_AND_NAN = np.array([1.0, np.nan, np.inf, -2.5], np.float32)


def check(body: str, inputs: list[np.ndarray], expected: np.ndarray):
    """`body` computes the register `result` from `a`, `b`, `c`, of the inputs' and the expected array's types."""
    found = run_elementwise(body, inputs, expected.dtype)
    np.testing.assert_array_equal(found, expected)


def u32(*values):
    return np.array([v & 0xFFFFFFFF for v in values], np.uint32)


def s32(*values):
    return np.array(values, np.int32)


def f32(*values):
    return np.array(values, np.float32)


INTEGERS = {
    "add.s32": (s32(1, -5), s32(2, 3), s32(3, -2)),
    "sub.s32": (s32(1, -5), s32(2, 3), s32(-1, -8)),
    "mul.lo.s32": (s32(1 << 20, -3), s32(1 << 13, 7), s32(0, -21)),
    "mul.hi.s32": (s32(1 << 20, -3), s32(1 << 13, 7), s32(2, -1)),
    "mul.hi.u32": (u32(1 << 20, -1), u32(1 << 13, 2), u32(2, 1)),
    "div.s32": (s32(7, -7), s32(2, 2), s32(3, -3)),
    "rem.s32": (s32(7, -7), s32(2, 2), s32(1, -1)),
    "min.s32": (s32(7, -7), s32(2, 2), s32(2, -7)),
    "max.u32": (u32(7, -7), u32(2, 2), u32(7, -7)),
    "and.b32": (u32(0b1100), u32(0b1010), u32(0b1000)),
    "or.b32": (u32(0b1100), u32(0b1010), u32(0b1110)),
    "xor.b32": (u32(0b1100), u32(0b1010), u32(0b0110)),
    "shl.b32": (u32(1, 1, 1), u32(4, 31, 32), u32(16, 1 << 31, 0)),
    "shr.u32": (u32(-16, -1, 8), u32(4, 32, 3), u32(0x0FFFFFFF, 0, 1)),
    "shr.s32": (s32(-16, -1, 8), s32(4, 40, 3), s32(-1, -1, 1)),
}


@pytest.mark.parametrize("opcode", INTEGERS)
def test_integers(opcode):
    a, b, expected = INTEGERS[opcode]
    check(f"{opcode} result, a, b;", [a, b], expected)


def test_products_of_twice_the_width():
    a, b = s32(-3, 1 << 30), s32(1 << 30, 8)
    check("mul.wide.s32 result, a, b;", [a, b], a.astype(np.int64) * b)
    c = np.array([5, -5], np.int64)
    check("mad.wide.s32 result, a, b, c;", [a, b, c], a.astype(np.int64) * b + c)


def halves(numbers: list[int], words: int) -> list[np.ndarray]:
    """Each number's 32-bit words, the lowest first."""
    return [u32(*(n >> 32 * k for n in numbers)) for k in range(words)]


def test_carries_of_a_sum_and_a_difference():
    """Numbers of 64 bits, a word each at a time; their upper words, and the carry out of these."""
    pairs = [(2**32 - 1, 1), (2**64 - 1, 1), (5, 7), (2**63, 2**63), (0, 1), (2**32, 1)]
    (a0, a1), (b0, b1) = (halves([pair[k] for pair in pairs], 2) for k in range(2))
    below = "mov.b64 {v0, v1}, a; mov.b64 {w0, w1}, b; {op}.cc.u32 v0, v0, w0; {op}c.cc.u32 v1, v1, w1;"
    wide = [np.array([pair[k] for pair in pairs], np.uint64) for k in range(2)]
    for op, function in (("add", lambda x, y: x + y), ("sub", lambda x, y: x - y)):
        body = ".reg .u32 v0, v1, w0, w1; " + below.replace("{op}", op)
        exact = [function(x, y) for x, y in pairs]
        check(body + "mov.b64 result, {v0, v1};", wide, np.array([n % 2**64 for n in exact], np.uint64))
        out = [int(not 0 <= n < 2**64) for n in exact]
        check(body + "addc.u32 result, 0, 0;", wide, u32(*out))


def test_carries_of_a_product():
    """64 bits by 32 bits: 96 bits, a word each at a time."""
    a, b = [2**64 - 1, 2**63 + 12345, 2**32, 7], [2**32 - 1, 2**31 + 3, 2**32 - 1, 9]
    words = halves([x * y for x, y in zip(a, b, strict=True)], 3)
    body = """.reg .u32 v0, v1, r0, r1, r2; mov.b64 {v0, v1}, a; mul.lo.u32 r0, v0, b; mul.hi.u32 r1, v0, b;
        mad.lo.cc.u32 r1, v1, b, r1; madc.hi.u32 r2, v1, b, 0; mov.u32 result, """
    for register, word in zip(("r0", "r1", "r2"), words, strict=True):
        check(f"{body}{register};", [np.array(a, np.uint64), u32(*b)], word)
    chained = """mad.lo.cc.u32 x, a, b, a; madc.lo.cc.u32 y, a, b, 0; addc.u32 result, y, 0;"""
    carry = [((x * y % 2**32) + x) >> 32 for x, y in zip((2**32 - 1, 5), (2**32 - 1, 6), strict=True)]
    second = [(x * y % 2**32) + c for x, y, c in zip((2**32 - 1, 5), (2**32 - 1, 6), carry, strict=True)]
    check(chained, [u32(2**32 - 1, 5), u32(2**32 - 1, 6)], u32(*((s % 2**32) + (s >> 32) for s in second)))


def test_multiply_add_and_unary_integers():
    check("mad.lo.s32 result, a, b, c;", [s32(2, -2), s32(3, 3), s32(4, 4)], s32(10, -2))
    check("neg.s32 result, a;", [s32(2, -2)], s32(-2, 2))
    check("abs.s32 result, a;", [s32(2, -2)], s32(2, 2))
    check("not.b32 result, a;", [u32(0, 5)], u32(-1, ~5))


FLOATS = {
    "add.f32": np.add,
    "sub.rn.f32": np.subtract,
    "mul.f32": np.multiply,
    "div.rn.f32": np.divide,
    "min.f32": np.fmin,
    "max.f32": np.fmax,
    "min.NaN.f32": np.minimum,
    "max.NaN.f32": np.maximum,
}


@pytest.mark.parametrize("opcode", FLOATS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_floats(opcode):
    a, b = np.meshgrid(ONE_AND_NAN, ONE_AND_NAN)
    a, b = a.reshape(-1).copy(), b.reshape(-1).copy()
    check(f"{opcode} result, a, b;", [a, b], FLOATS[opcode](a, b))


def test_fused_multiply_add_is_rounded_once():
    a = f32(1 + 2**-12)
    check("fma.rn.f32 result, a, a, b;", [a, -f32(1 + 2**-11)], f32(2**-24))
    check("mul.f32 result, a, a; add.f32 result, result, b;", [a, -f32(1 + 2**-11)], f32(0))


def rounded(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return np.inf if exact > 0 else -np.inf


def numbers_of_all_sizes(dtype, count: int, sizes: int) -> list[np.ndarray]:
    """Three arrays of random mantissas; the third is near the negative product of the others in half of the places."""
    generator = np.random.default_rng(0)
    signed = generator.uniform(1, 2, (3, count)) * generator.choice([-1, 1], (3, count))
    a, b, c = np.ldexp(signed, generator.integers(-sizes, sizes, (3, count))).astype(dtype)
    with np.errstate(all="ignore"):
        near = (-a * b * (1 + 3 * np.finfo(dtype).eps)).astype(dtype)
    return [a, b, np.where((np.arange(count) % 2 == 0) & np.isfinite(near), near, c)]


def fractions(numbers: list[np.ndarray]) -> list[Fraction]:
    return [Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)) for a, b, c in zip(*numbers, strict=True)]


@pytest.mark.parametrize("sizes", [2, 60, 520, 1020])
def test_fused_multiply_add_of_float64_is_rounded_once(sizes):
    numbers = numbers_of_all_sizes(np.float64, 1000, sizes)
    check("fma.rn.f64 result, a, b, c;", numbers, np.array([rounded(x) for x in fractions(numbers)]))


def test_fused_multiply_add_of_float64_of_what_is_no_number():
    a, b, c = (
        np.array(x) for x in ([np.inf, np.inf, 0.0, -0.0, 1.0], [1.0, 0.0, np.inf, 1.0, 1.0], [1, 1, 1, 0.0, -1])
    )
    check("fma.rn.f64 result, a, b, c;", [a, b, c], np.array([np.inf, np.nan, np.nan, 0.0, 0.0]))


@pytest.mark.parametrize("sizes", [2, 20, 60])
def test_fused_multiply_add_of_float32_downwards(sizes):
    """The largest float32 that is not above the exact result; to nearest, the nearest one, ties to even."""
    numbers = numbers_of_all_sizes(np.float32, 1000, sizes)
    nearest, downwards = [], []
    for exact in fractions(numbers):
        around = np.float32(rounded(exact))
        low, high = np.nextafter(around, np.float32(-np.inf)), np.nextafter(around, np.float32(np.inf))
        candidates = [x for x in (low, around, high) if np.isfinite(x)]
        downwards.append(max(x for x in candidates if Fraction(float(x)) <= exact))
        even = {x: int(np.array(x).view(np.uint32)) % 2 for x in candidates}
        nearest.append(min(candidates, key=lambda x: (abs(Fraction(float(x)) - exact), even[x])))
    check("fma.rn.f32 result, a, b, c;", numbers, f32(*nearest))
    check("fma.rm.f32 result, a, b, c;", numbers, f32(*downwards))


def test_first_guess_of_a_reciprocal_in_float64():
    """The low half of the argument is ignored, that of the result 0: it is within 2^-19 of the reciprocal."""
    a = np.concatenate([np.random.default_rng(0).uniform(1, 4, 200), [1e300, -1e-300]])
    found = run_elementwise("rcp.approx.ftz.f64 result, a;", [a], np.float64)
    assert (found.view(np.uint64) & np.uint64(0xFFFFFFFF) == 0).all() and (np.abs(found * a - 1) < 2.0**-19).all()
    assert not np.array_equal(found, 1 / a)
    sharp = np.array([0.0, -0.0, 5e-324, np.inf, -np.inf, np.nan, 1.7e308])
    check("rcp.approx.ftz.f64 result, a;", [sharp], np.array([np.inf, -np.inf, np.inf, 0.0, -0.0, np.nan, 0.0]))


def test_functions():
    check("sqrt.rn.f32 result, a;", [f32(4, 0, -1)], f32(2, 0, np.nan))
    check("rsqrt.approx.f32 result, a;", [f32(4, 0)], f32(0.5, np.inf))
    check("rcp.rn.f32 result, a;", [f32(4, -0.0)], f32(0.25, -np.inf))
    check("ex2.approx.f32 result, a;", [f32(3, -1)], f32(8, 0.5))
    check("lg2.approx.f32 result, a;", [f32(8, 0)], f32(3, -np.inf))
    check("tanh.approx.f32 result, a;", [f32(0, 100)], f32(0, 1))
    check("copysign.f32 result, a, b;", [f32(-1, 1), f32(2, -2)], f32(-2, 2))
    check("sqrt.rn.f64 result, a;", [np.array([2.0])], np.sqrt(np.array([2.0])))


def test_pairs_of_halves():
    a, b = np.array([1.5, 2, -3, 65504], np.float16), np.array([2, 0.25, 1, 65504], np.float16)
    found = run_elementwise("add.f16x2 result, a, b;", [a.view(np.uint32), b.view(np.uint32)], np.uint32)
    np.testing.assert_array_equal(found.view(np.float16), np.array([3.5, 2.25, -2, np.inf], np.float16))


def test_fields_of_bits():
    check("bfe.u32 result, a, 4, 8;", [u32(0xABCDE)], u32(0xCD))
    check("bfe.s32 result, a, 4, 8;", [s32(0xABCDE, 0x7F0)], s32(0xCD - 256, 0x7F))
    check("bfi.b32 result, a, b, 8, 4;", [u32(0xFF), u32(0)], u32(0xF00))
    check("shf.l.wrap.b32 result, a, b, 8;", [u32(0x12345678), u32(0x9ABCDEF0)], u32(0xBCDEF012))
    check("shf.r.wrap.b32 result, a, b, 8;", [u32(0x12345678), u32(0x9ABCDEF0)], u32(0xF0123456))
    check("prmt.b32 result, a, b, 0x9540;", [u32(0x44332211), u32(0x887766F5)], u32(0x0066F511))
    check("prmt.b32 result, a, b, 0xFFFC;", [u32(0x44332211), u32(0x887766F5)], u32(-1))
    check("lop3.b32 result, a, b, a, 0x3C;", [u32(0b1100), u32(0b1010)], u32(0b0110))
    check("popc.b32 result, a;", [u32(0, -1, 5)], u32(0, 32, 2))
    check("clz.b32 result, a;", [u32(0, -1, 5)], u32(32, 0, 29))


COMPARISONS = {"eq": 0b001, "ne": 0b110, "lt": 0b100, "le": 0b101, "gt": 0b010, "ge": 0b011}


@pytest.mark.parametrize("how", COMPARISONS)
def test_comparisons(how):
    """Equal, greater, less; then NaN, which only the unordered comparisons let pass."""
    a, b = f32(1, 2, 1, np.nan), f32(1, 1, 2, 1)
    ordered = [COMPARISONS[how] >> bit & 1 for bit in range(3)]
    choose = "selp.u32 result, 1, 0, p;"
    check(f"setp.{how}.f32 p, a, b; {choose}", [a, b], u32(*ordered, 0))
    check(f"setp.{how}u.f32 p, a, b; {choose}", [a, b], u32(*ordered, 1))


def test_comparisons_of_unsigned_and_combined():
    choose = "selp.u32 result, 1, 0, p;"
    check(f"setp.lt.s32 p, a, 1; {choose}", [s32(-1, 5)], u32(1, 0))
    check(f"setp.lo.u32 p, a, 1; {choose}", [u32(-1, 0)], u32(0, 1))
    check(f"setp.nan.f32 p, a, a; {choose}", [f32(1, np.nan)], u32(0, 1))
    check(f"setp.lt.s32 q, a, 3; setp.gt.and.s32 p, a, 0, q; {choose}", [s32(-1, 1, 5)], u32(0, 1, 0))
    check(f"setp.lt.s32 q, a, 3; setp.gt.or.s32 p|q, a, 9, !q; {choose}", [s32(-1, 5, 10)], u32(0, 1, 1))


def test_guards():
    check("mov.u32 result, 7; setp.gt.s32 p, a, 0; @p mov.u32 result, 8;", [s32(-1, 1)], u32(7, 8))
    check("mov.u32 result, 7; setp.gt.s32 p, a, 0; @!p mov.u32 result, 8;", [s32(-1, 1)], u32(8, 7))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_to_integer_saturates(dtype):
    size = 8 * np.dtype(dtype).itemsize
    a = np.array([1.5, -1.5, 2.5, np.inf, -np.inf, np.nan], dtype)
    largest, least = 2**31 - 1, -(2**31)
    check(f"cvt.rzi.s32.f{size} result, a;", [a], s32(1, -1, 2, largest, least, 0))
    check(f"cvt.rni.s32.f{size} result, a;", [a], s32(2, -2, 2, largest, least, 0))
    check(f"cvt.rmi.s32.f{size} result, a;", [a], s32(1, -2, 2, largest, least, 0))
    check(f"cvt.rpi.u32.f{size} result, a;", [a], u32(2, 0, 3, -1, 0, 0))


def test_other_conversions():
    check("cvt.rn.f32.s32 result, a;", [s32(-3, (1 << 24) + 1)], f32(-3, 1 << 24))
    check("cvt.s64.s32 result, a;", [s32(-3)], np.array([-3], np.int64))
    check("cvt.u64.u32 result, a;", [u32(-3)], np.array([2**32 - 3], np.uint64))
    check("cvt.f64.f32 result, a;", [f32(0.1)], f32(0.1).astype(np.float64))
    check("cvt.rn.f32.f64 result, a;", [np.array([0.1])], f32(0.1))
    check("cvt.rmi.f32.f32 result, a;", [f32(-1.5)], f32(-2))
    check("cvt.sat.f32.f32 result, a;", [f32(-1.5, 0.5, 7, np.nan)], f32(0, 0.5, 1, 0))


def test_bf16_is_rounded_to_nearest_even():
    """1 + 2^-8 lies between two, and goes to the even one; the upper half of a pair is the first operand."""
    check(
        "cvt.rn.bf16x2.f32 result, a, b;", [f32(1 + 2**-8, np.nan), f32(1 + 3 * 2**-8, 1)], u32(0x3F803F82, 0x7FFF3F80)
    )


def test_numbers_and_vectors_of_registers():
    check("mov.f32 result, 0f3FC00000;", [f32(0)], f32(1.5))
    check("mov.f64 result, 0d3FF8000000000000;", [f32(0)], np.array([1.5]))
    check("mov.u32 result, -2;", [f32(0)], u32(-2))
    check("mov.b64 result, {a, b};", [u32(5), u32(7)], np.array([7 << 32 | 5], np.uint64))
    check("mov.b64 {result, _}, a;", [np.array([7 << 32 | 5], np.uint64)], u32(5))
    check("{ .reg .u32 result2; mov.u32 result2, 3; mov.u32 result, result2; }", [f32(0)], u32(3))
