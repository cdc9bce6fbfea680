"""Helper functions of register tiles: vectors and their multiply-add, and what fills, packs and turns tiles."""

from __future__ import annotations

import re
from typing import NamedTuple

from graphc.emit import winograd
from graphc.emit.pooled import pooling_helper
from graphc.emit.text import SUFFIXED
from graphc.isa import Isa

_TYPES = SUFFIXED

_VECTORS = """\
/* Vectors by the GNU extension, which every instruction set gets in its own registers, and arrays of the same
 * length elsewhere. GC_MADD_... adds factor * vector to a sum, rounded once where gc_fma does so. */
#ifdef __GNUC__
#define GC_VECTOR(name, type, lanes) \\
    typedef type name __attribute__((vector_size(sizeof(type) * lanes), aligned(sizeof(type)), may_alias))
#if defined __FMA__ || defined __ARM_FEATURE_FMA || defined __FP_FAST_FMA
#define GC_MADD(sum, factor, vector) \\
    do { \\
        __typeof__(sum) gc_r; \\
        for (size_t gc_l = 0; gc_l < sizeof gc_r / sizeof gc_r[0]; gc_l++) \\
            gc_r[gc_l] = _Generic(gc_r[0], float: __builtin_fmaf, default: __builtin_fma)( \\
                (factor), (vector)[gc_l], (sum)[gc_l]); \\
        (sum) = gc_r; \\
    } while (0)
#else
#define GC_MADD(sum, factor, vector) (sum) += (factor) * (vector)
#endif
#else
#define GC_VECTOR(name, type, lanes) \\
    typedef struct { \\
        type v[lanes]; \\
    } name
#define GC_MADD(sum, factor, vector) \\
    for (size_t gc_l = 0; gc_l < sizeof (sum).v / sizeof *(sum).v; gc_l++) \\
        (sum).v[gc_l] += (factor) * (vector).v[gc_l]
#endif
#define GC_LOAD(name, from) (*(const name *)(from))
#define GC_STORE(name, to, vector) (*(name *)(to) = (vector))
"""

# Written as the instruction itself: compilers break up loops over lanes, and spill sums.
_AVX512 = """\
#if defined __AVX512VL__ && !defined GC_NO_ASM /* the instruction reads the factor and repeats it in all lanes */
#define GC_MADD_{lanes}_{S}(sum, factor, vector) \\
    __asm__("vfmadd231p{p} %1%{{1to{lanes}%}}, %2, %0" : "+v"(sum) : "m"(factor), "v"(vector))
#else
#define GC_MADD_{lanes}_{S} GC_MADD
#endif
"""


class _TwoSteps(NamedTuple):
    """Instructions that read a factor, then multiply and add; ``macro`` tells that the compiler has them.

    They are one text: a factor that the compiler reads is kept for all taps that meet it, and spilled.
    """

    macro: str
    register: str  # the constraint for vector registers
    read: str
    add: str  # to sum {s} the factor times vector {v}


_TWO_STEPS = {
    "avx2": _TwoSteps("__FMA__", "x", "vbroadcasts{p} %[m], %[f]", "vfmadd231p{p} %[{v}], %[f], %[{s}]"),
    "neon": _TwoSteps(
        "__aarch64__", "w", "ldr %{p}[f], %[m]", "fmla %[{s}].{short}{p}, %[{v}].{short}{p}, %[f].{p}[0]"
    ),
}
_REGISTER = """\
#if defined {macro} && defined __GNUC__ && !defined GC_NO_ASM
#define GC_MADD_{lanes}_{S}(sum, factor, vector) \\
    do {{ \\
        gc_vec{lanes}_{S} gc_f; \\
        __asm__("{read}\\n\\t{add}" \\
                : [s] "+{register}"(sum), [f] "=&{register}"(gc_f) : [m] "m"(factor), [v] "{register}"(vector)); \\
    }} while (0)
#else
#define GC_MADD_{lanes}_{S} GC_MADD
#endif
"""
_PAIR = """\
#if defined {macro} && defined __GNUC__ && !defined GC_NO_ASM
#define GC_MADD_{lanes}_{S}(sum, factor, vector) \\
    do {{ \\
        gc_vec{short}_{S} gc_f; \\
        __asm__("{read}\\n\\t{add}\\n\\t{add_high}" \\
                : [s] "+{register}"((sum).low), [t] "+{register}"((sum).high), [f] "=&{register}"(gc_f) \\
                : [m] "m"(factor), [v] "{register}"((vector).low), [w] "{register}"((vector).high)); \\
    }} while (0)
#elif defined __GNUC__
"""
_PAIR_TYPE = """\
#ifdef __GNUC__ /* two registers */
typedef struct {{
    gc_vec{short}_{S} low, high;
}} __attribute__((may_alias, aligned(sizeof({T})))) gc_vec{lanes}_{S};
#else
GC_VECTOR(gc_vec{lanes}_{S}, {T}, {lanes});
#endif
"""
_HALVES = """\
#define GC_MADD_{lanes}_{S}(sum, factor, vector) \\
    do {{ \\
        GC_MADD_{short}_{S}((sum).low, factor, (vector).low); \\
        GC_MADD_{short}_{S}((sum).high, factor, (vector).high); \\
    }} while (0)
#else
#define GC_MADD_{lanes}_{S} GC_MADD
#endif
"""
_PLAIN = "#define GC_MADD_{lanes}_{S} GC_MADD\n"
_PS = {"f": "s", "d": "d"}
_BYTES = {"f": 4, "d": 8}

# Instruction sets on which gcc takes the sums of convolutions apart too; on others it would only cost small kernels.
_SETTLED = {"neon"}
_STORED = """\
/* What follows reads sums from where they are stored. A compiler that hands them on instead, element by element,
 * takes them out of their registers in the loop as well. */
#ifdef __GNUC__
#define GC_STORED(to) __asm__ volatile("" : : "r"(to) : "memory")
#else
#define GC_STORED(to) (void)(to)
#endif
"""


def _short(lanes: int, suffix: str, isa: Isa) -> int:
    """Return the lanes of a register, or of the pair of registers that stands for one."""
    return min(lanes, max(2, isa.register_bytes // _BYTES[suffix]))


def _vectors(used: list[tuple[int, str]], isa: Isa) -> list[str]:
    """Return the vector types, each with its multiply-add for the instruction set."""
    found = [_VECTORS]
    declared = set()
    for lanes, suffix in used:
        short = _short(lanes, suffix, isa)
        if (short, suffix) not in declared:
            found.append(f"GC_VECTOR(gc_vec{short}_{suffix}, {_TYPES[suffix]}, {short});\n")
            found.append(_multiply_add(short, short, suffix, isa))
            declared.add((short, suffix))
        if short < lanes:
            found.append(_PAIR_TYPE.format(lanes=lanes, short=short, S=suffix, T=_TYPES[suffix]))
            found.append(_multiply_add(lanes, short, suffix, isa))
    return found


def _multiply_add(lanes: int, short: int, suffix: str, isa: Isa) -> str:
    """Return the multiply-add of vectors that are one register of ``short`` lanes, or two."""
    values = {"lanes": lanes, "short": short, "S": suffix, "p": _PS[suffix]}
    steps = _TWO_STEPS.get(isa.name)
    if steps is not None:
        read = steps.read.format(**values)
        add, high = (steps.add.format(s=s, v=v, **values) for s, v in ("sv", "tw"))
        form = _REGISTER if lanes == short else _PAIR + _HALVES
        return form.format(
            macro=steps.macro, register=steps.register, read=read, add=add, add_high=high, **values
        )
    if lanes > short:
        return "#ifdef __GNUC__\n" + _HALVES.format(**values)
    return (_AVX512 if isa.name == "avx512" else _PLAIN).format(**values)


_PREFETCH = """\
/* Asks for a line of the memory that is read soon. */
#ifdef __GNUC__
#define GC_PREFETCH(from) __builtin_prefetch(from)
#else
#define GC_PREFETCH(from) (void)(from)
#endif
"""

_INDEPENDENT = """\
/* No iteration of the next loop reads what another writes: gcc, which forgets `restrict` in parallel loops, would
 * work on single elements. (clang does not, and warns where a function like sqrtf stands in its way.) */
#if defined _OPENMP && !defined __clang__
#define GC_INDEPENDENT GC_PRAGMA(omp simd)
#else
#define GC_INDEPENDENT
#endif
"""

_BORDERED = """\
/* Fills a tile with rows of the channels of an image that has zeros around it, and between its pixels where these
 * are to be `apart`. The tile begins at row `top`; in a row, `count` pixels begin in column `left`. */
static inline void gc_bordered_{S}(
    {T} *tile, int64_t channels, int64_t rows, int64_t columns, int64_t top, int64_t left, const {T} *image,
    int64_t height, int64_t width, int64_t count, int64_t rows_apart, int64_t apart)
{{
    const int whole = columns < 64 || apart > 1; /* zeros everywhere first: in short rows that costs less */
    if (whole) memset(tile, 0, (size_t)(channels * rows * columns) * sizeof *tile);
    for (int64_t c = 0; c < channels; c++) {{
        for (int64_t r = 0; r < rows; r++) {{
            const int64_t y = (top + r) / rows_apart;
            {T} *const line = tile + (c * rows + r) * columns, *const to = line + left;
            if (top + r < 0 || y >= height || y * rows_apart != top + r) {{
                if (!whole) memset(line, 0, (size_t)columns * sizeof *line);
                continue;
            }}
            const {T} *const from = image + (c * height + y) * width;
            if (!whole) {{
                for (int64_t x = 0; x < left; x++) line[x] = 0;
                for (int64_t x = left + count; x < columns; x++) line[x] = 0;
            }}
            if (apart == 1) memcpy(to, from, (size_t)count * sizeof *tile);
            else
                for (int64_t x = 0; x < count; x++) to[x * apart] = from[x];
        }}
    }}
}}
"""

_COPY = """\
/* Copies rows of elements, each array with steps of its own from row to row and from element to element. */
static inline void gc_copy_{S}(
    {T} *restrict to, const {T} *restrict from, int64_t rows, int64_t to_row, int64_t from_row, int64_t columns,
    int64_t to_step, int64_t from_step, int threads)
{{
    GC_PARALLEL_FOR(threads)
    for (int64_t r = 0; r < rows; r++) {{
        if (to_step == 1 && from_step == 1)
            memcpy(to + r * to_row, from + r * from_row, (size_t)columns * sizeof *to);
        else
            for (int64_t x = 0; x < columns; x++) to[r * to_row + x * to_step] = from[r * from_row + x * from_step];
    }}
}}
"""

_STRIP = """\
/* Copies `count` pixels of every channel, `tile` pixels of all channels after the other. A tile has at most 8: so
 * many are copied, which is one instruction, and what is too much is overwritten by the next channel. */
static inline void gc_strip_{S}(
    {T} *to, int64_t channels, int64_t count, int64_t tile, const {T} *from, int64_t plane)
{{
    for (int64_t left = 0; left < count; left += tile) {{
        {T} *const first = to + left * channels;
        for (int64_t c = 0; c < channels - 1; c++) memcpy(first + c * tile, from + c * plane + left, 8 * sizeof *to);
        memcpy(first + (channels - 1) * tile, from + (channels - 1) * plane + left, (size_t)tile * sizeof *to);
    }}
}}
"""

_TRANSPOSE = """\
/* Transposes a table of 8 rows of {lanes} to {lanes} rows of 8, in place: three rounds of interleaving rows. */
static inline void gc_transpose{lanes}_{S}({T} *table) {{
    {T} columns[{lanes} * 8];
#if defined __GNUC__ && (defined __clang__ || __GNUC__ >= 12)
    for (int part = 0; part < {lanes}; part += {short}) {{
        gc_vec{short}_{S} row[8], next[8];
        for (int k = 0; k < 8; k++) row[k] = GC_LOAD(gc_vec{short}_{S}, table + k * {lanes} + part);
        for (int round = 0; round < 3; round++) {{
            for (int k = 0; k < 4; k++) {{
                next[2 * k] = __builtin_shufflevector(row[k], row[k + 4], {low});
                next[2 * k + 1] = __builtin_shufflevector(row[k], row[k + 4], {high});
            }}
            for (int k = 0; k < 8; k++) row[k] = next[k];
        }}
        for (int k = 0; k < 8; k++) GC_STORE(gc_vec{short}_{S}, columns + part * 8 + k * {short}, row[k]);
    }}
#else
    for (int k = 0; k < 8; k++)
        for (int lane = 0; lane < {lanes}; lane++) columns[lane * 8 + k] = table[k * {lanes} + lane];
#endif
    memcpy(table, columns, sizeof columns);
}}
"""

_COLUMNS = """\
/* Packs `count` columns of `live` rows, `stride` apart, into vectors of {lanes}, with zeros in idle lanes. */
static inline void gc_columns{lanes}_{S}({T} *to, const {T} *from, int64_t stride, int64_t live, int64_t count) {{
    int64_t whole = 0;
#if defined __GNUC__ && (defined __clang__ || __GNUC__ >= 12)
    whole = count - count % 8;
    for (int64_t x = 0; x < whole; x += 8) {{ /* in three rounds of taking turns */
        for (int64_t part = 0; part < {lanes}; part += {short}) {{
            gc_vec{short}_{S} row[8], next[8];
            if (part + {short} <= live) {{
                const {T} *const rows = from + part * stride + x;
                for (int k = 0; k < 8; k++) {whole}
            }} else {{
                {T} table[8 * {short}] = {{0}};
                for (int64_t k = 0; part + k < live; k++)
                    memcpy(table + k * 8, from + (part + k) * stride + x, 8 * sizeof *to);
                for (int k = 0; k < 8; k++) row[k] = GC_LOAD(gc_vec{short}_{S}, table + k * {short});
            }}
            for (int round = 0; round < 3; round++) {{
                for (int k = 0; k < 4; k++) {{
                    next[k] = __builtin_shufflevector(row[2 * k], row[2 * k + 1], {even});
                    next[k + 4] = __builtin_shufflevector(row[2 * k], row[2 * k + 1], {odd});
                }}
                for (int k = 0; k < 8; k++) row[k] = next[k];
            }}
            for (int k = 0; k < 8; k++) GC_STORE(gc_vec{short}_{S}, to + (x + k) * {lanes} + part, row[k]);
        }}
    }}
#endif
    for (int64_t x = whole; x < count; x++)
        for (int64_t lane = 0; lane < {lanes}; lane++)
            to[x * {lanes} + lane] = lane < live ? from[lane * stride + x] : 0;
}}
"""

_TWO_ROWS = """{{
                    const {T} *const two = rows + 2 * k * stride;
                    row[k] = __builtin_shufflevector(
                        GC_LOAD(gc_vec8_{S}, two), GC_LOAD(gc_vec8_{S}, two + stride), {both});
                }}"""

_PACK = """\
/* Packs channels that lie `apart` into vectors of {lanes} ahead of two other axes, with zeros past the last. */
static inline void gc_pack{lanes}_{S}(
    {T} *restrict out, const {T} *restrict in, int64_t channels, int64_t apart, int64_t rows, int64_t row_step,
    int64_t columns, int64_t column_step, int threads)
{{
    GC_PARALLEL_FOR(threads)
    for (int64_t block = 0; block < (channels + {lanes} - 1) / {lanes}; block++) {{
        const int64_t first = block * {lanes}, live = channels - first < {lanes} ? channels - first : {lanes};
        for (int64_t r = 0; r < rows; r++) {{
            {T} *const to = out + (block * rows + r) * columns * {lanes};
            const {T} *const from = in + first * apart + r * row_step;
            if (column_step == 1) gc_columns{lanes}_{S}(to, from, apart, live, columns);
            else if (apart == 1 && live == {lanes})
                for (int64_t x = 0; x < columns; x++)
                    memcpy(to + x * {lanes}, from + x * column_step, {lanes} * sizeof *to);
            else
                for (int64_t x = 0; x < columns; x++)
                    for (int64_t lane = 0; lane < {lanes}; lane++)
                        to[x * {lanes} + lane] = lane < live ? from[lane * apart + x * column_step] : 0;
        }}
    }}
}}
"""


def _columns(lanes: int, suffix: str, isa: Isa) -> str:
    """Return the function that packs rows of pixels, one for each channel, into vectors of channels."""
    short = _short(lanes, suffix, isa)
    even, odd = (", ".join(str(2 * k + start) for k in range(short)) for start in (0, 1))
    if short <= 8:
        position = "k * stride" if short == 8 else f"k / {8 // short} * stride + k % {8 // short} * {short}"
        whole = f"row[k] = GC_LOAD(gc_vec{short}_{suffix}, rows + {position});"
    else:
        whole = _TWO_ROWS.format(S=suffix, T=_TYPES[suffix], both=", ".join(map(str, range(short))))
    return _COLUMNS.format(
        lanes=lanes, short=short, S=suffix, T=_TYPES[suffix], even=even, odd=odd, whole=whole
    )


def _transpose(lanes: int, suffix: str, isa: Isa) -> str:
    """Return the function that turns a tile of 8 pixels with ``lanes`` channels each into rows of pixels."""
    short = _short(lanes, suffix, isa)

    def interleaved(start: int) -> str:
        pairs = ((start + k, short + start + k) for k in range(short // 2))
        return ", ".join(str(position) for pair in pairs for position in pair)

    return _TRANSPOSE.format(
        lanes=lanes, short=short, S=suffix, T=_TYPES[suffix], low=interleaved(0), high=interleaved(short // 2)
    )


_TILES = {
    "ZERO": (
        "/* {count} vectors of zeros. */\n#define GC_ZERO_{count}(name, s)",
        "name s##{k} = {{0}}",
    ),
    "FETCH": (
        "/* {count} vectors from rows of a table. */\n#define GC_FETCH_{count}(name, s, from, step)",
        "name s##{k} = GC_LOAD(name, (from) + {k} * (step))",
    ),
    "MADDS": (
        "/* Adds `vector` times from[0], from[step], ... to {count} sums. */\n"
        "#define GC_MADDS_{count}(form, s, from, step, vector)",
        "GC_MADD_##form(s##{k}, (from)[{k} * (step)], vector)",
    ),
    "STORE": (
        "/* Writes {count} vectors to rows of a table. */\n#define GC_STORE_{count}(name, to, step, s)",
        "GC_STORE(name, (to) + {k} * (step), s##{k})",
    ),
}


def _tile_macro(kind: str, count: int, isa: Isa) -> str:
    """Return the macro that does to ``count`` named vectors, which live in registers, what an array's loop would.

    gcc keeps arrays of vectors in memory, or spills them.
    """
    head, body = _TILES[kind]
    lines = [
        head.format(count=count).replace(" 1 vectors", " 1 vector"),
        *(body.format(k=k) for k in range(count)),
        *(["GC_STORED(to)"] if kind == "STORE" and isa.name in _SETTLED else []),
    ]
    comment, define = lines[0].split("\n")
    return "\n".join([comment, " \\\n    ".join([define, "; \\\n    ".join(lines[1:])])]) + "\n"


_POOLING = re.compile(r"\bgc_pool(_index)?(\d+)x(\d+)_(\d+)_([fd])\b")


def _used(text: str, name: str) -> list[tuple[int, str]]:
    """Return the lanes and the type of every helper of that name that the text calls."""
    return sorted({(int(n), s) for n, s in re.findall(rf"\b{name}(\d+)_([fd])\b", text)})


def tile_helpers(text: str, isa: Isa) -> list[str]:
    """Return the definitions of the helpers that occur in the text, each after what it needs."""
    found = []
    for name, definition in (("bordered", _BORDERED), ("copy", _COPY), ("strip", _STRIP)):
        found += [definition.format(T=t, S=s) for s, t in _TYPES.items() if f"gc_{name}_{s}(" in text]
    packs, strips = _used(text, "gc_pack"), _used(text, "gc_winograd_(?:strip|weights)")
    results = _used(text, "gc_winograd_result")
    # What a helper calls is used too, though the text does not say so.
    text += "".join(f" gc_columns{n}_{s}" for n, s in packs + strips)
    text += "".join(f" gc_transpose{n}_{s} gc_winograd_pixels{n}_{s}" for n, s in results)
    turned, columns = _used(text, "gc_transpose"), _used(text, "gc_columns")
    text += "".join(f" gc_vec{n}_{s}" for n, s in turned + columns)
    text += "".join(f" gc_vec8_{s}" for n, s in columns if min(n, isa.register_bytes // _BYTES[s]) > 8)
    if vectors := _used(text, "gc_vec"):
        found += _vectors(vectors, isa)
        found += [_transpose(n, s, isa) for n, s in turned]
        found += [_columns(n, s, isa) for n, s in columns]
        found += [_PACK.format(lanes=n, S=s, T=_TYPES[s]) for n, s in packs]
        for name, definition in winograd.BY_LANES.items():
            found += [
                definition.format(lanes=n, S=s, T=_TYPES[s]) for n, s in _used(text, f"gc_winograd_{name}")
            ]
        found += [
            pooling_helper((int(kh), int(kw)), int(n), s, _TYPES[s], bool(index))
            for index, kh, kw, n, s in sorted(set(_POOLING.findall(text)))
        ]
        found += [_STORED] if "GC_STORED(" in text or isa.name in _SETTLED else []
        found += [_INDEPENDENT] if re.search(r"\bGC_INDEPENDENT\b", text) else []
        found += [_PREFETCH] if "GC_PREFETCH(" in text else []
        tiles = set(re.findall(r"\bGC_(ZERO|FETCH|MADDS|STORE)_(\d+)\b", text))
        found += [
            _tile_macro(kind, int(n), isa) for kind, n in sorted(tiles, key=lambda t: (int(t[1]), t[0]))
        ]
    return found
