"""Faults put into the C sources one at a time: the quick tests of the core must catch each.

python dev/trust/mutate.py [number ...]; exit status 1 if one survives. Builds in build/mutate.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

import numpy

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "mutate"

# File, what stands there, what is put in its place, tests that must fail.
MUTATIONS = [
    ("kernels/philox.h", "0xD2511F53", "0xD2511F51", "stream"),
    ("kernels/philox.h", "0xBB67AE85u", "0xBB67AE87u", "stream"),
    ("kernels/philox.h", "enum { ROUNDS = 7", "enum { ROUNDS = 6", "stream"),
    (
        "kernels/philox.h",
        "(block >> 32) | (uint64_t)domain << 28",
        "(uint64_t)domain << 28",
        "stream",
    ),
    ("kernels/philox.h", "(UINT64_C(1) << 32) - (uint32_t)block", "UINT64_MAX", "stream"),
    (
        "kernels/draw.h",
        "from.piece[at[k] / FD_ALIGN] + at[k] % FD_ALIGN",
        "from.piece[at[k] / FD_ALIGN]",
        "rows",
    ),
    (
        "kernels/philox.h",
        "lanes_xor(lanes_shr(number[j], 32), lanes_set((uint64_t)counter->domain << 28))",
        "lanes_set((uint64_t)counter->domain << 28)",
        "rows",
    ),
    (
        "drivers/draw.c",
        "start = d->start + (uint64_t)(d->rows[at[0]] * d->stride[0]);",
        "start = d->start + (uint64_t)(at[0] * d->stride[0]);",
        "rows",
    ),
    ("drivers/draw.c", "batch->pieces - (size_t)same;", "batch->pieces;", "rows"),
    ("drivers/draw.c", "FD_ALIGN + (start - piece)", "FD_ALIGN + start % 16", "place"),
    ("drivers/draw.c", "start == piece && n", "n", "place"),
    ("drivers/draw.c", "? FD_ALIGN : 16;", "? 16 : 16;", "place"),
    ("drivers/draw.c", "? FD_ALIGN : 16;", "? FD_ALIGN : 8;", "place"),
    ("drivers/draw.c", " | place->start) % FD_ALIGN", ") % FD_ALIGN", "rows"),
    ("drivers/draw.c", "if (place->shape[d] != 1)", "if (0)", "rows"),
    ("drivers/flat.c", "at = 0, row++;", "row++;", "rows"),
    (
        "drivers/flat.c",
        "r.number ? (uint64_t)r.number[row] : row",
        "row",
        "rows",
    ),
    (
        "drivers/noise.c",
        "(rows && !d ? (uint64_t)place->rows[i] : i)",
        "i",
        "rows",
    ),
    (
        "drivers/walk.c",
        "p.rows = place->rows + begin;",
        "p.rows = place->rows;",
        "rows",
    ),
    ("kernels/philox.h", "lanes_shr(i, 34)", "lanes_shr(i, 35)", "stream"),
    ("simd/avx2.h", "~(below[0] |", "(below[0] |", "stream"),
    ("kernels/philox.h", "(word, 8), fraction)", "(word, 8), fraction + 1)", "stream"),
    ("kernels/philox.h", "lanes_shr(word, 8), fraction", "word, fraction", "stream"),
    ("simd/avx2.h", "_mm256_slli_epi64(index, 62)", "_mm256_slli_epi64(index, 63)", "stream"),
    (
        "kernels/draw.h",
        "order_words(&keys);\n    for (size_t i = 0; i < n;)",
        "for (size_t i = 0; i < n;)",
        "stream",
    ),
    ("kernels/draw.h", "n += word != 0; /*", "/*", "stream"),
    (
        "kernels/draw.h",
        "word; word &= word - 1)\n            at[n++]",
        "0; )\n            at[n++]",
        "stream",
    ),
    ("kernels/draw.h", "draw->threshold ? 0 : 0xff", "0xff", "stream"),
    ("kernels/draw.h", "threshold == UINT64_C(1) << 31", "threshold == 0", "stream"),
    # Ties that are dropped: in the bits and in y, at any place, in place, and in tails.
    ("kernels/draw.h", "drop(to, dropped, m);", "", "dropout"),
    ("kernels/draw.h", "bits[dropped[k] / 8] &= (uint8_t)~(1 << dropped[k] % 8);", ";", "stream"),
    ("kernels/draw.h", "m += below >> l & 1", "m += below & 1", "stream"),
    ("kernels/draw.h", "tie[w] & all)", "tie[w])", "cuts"),
    ("kernels/draw.h", "behind ? i - TURN : i", "i", "dropout"),
    ("kernels/draw.h", "rest(to, begin, i);", "rest(to, i, i);", "dropout"),
    ("kernels/apply.h", "i / 8 + 4 * h, b->shift", "i / 8 + 4 * h, 0", "threads"),
    ("kernels/apply.h", "y + at[k] * SIZE, y, SIZE", "y + at[k] * SIZE, y, 1", "dropout"),
    ("kernels/apply.h", "if (second || k == 0)", "if (k == 0)", "fused"),
    ("kernels/apply.h", "memcpy(residual, b->o.residual + at[k] * SIZE, SIZE);", ";", "fused"),
    (
        "kernels/apply.h",
        "b->o.active[at[k] / 8] &= (uint8_t)~(1 << at[k] % 8);",
        ";",
        "fused",
    ),
    ("kernels/apply.h", "at[k] % 8), 0,", "7), 0,", "alpha"),
    ("kernels/bits.h", "BITS_CHUNK = 56", "BITS_CHUNK = 60", "place"),
    ("kernels/bits.h", "w->word >>= w->held & ~7u;", "w->word >>= w->held & ~15u;", "place"),
    ("kernels/bits.h", "(uint64_t)value << at % 8", "(uint64_t)value", "layouts"),
    ("drivers/draw.c", "nearbyint(ldexp(p, 32))", "ldexp(p, 32)", "stream"),
    ("drivers/draw.c", "p < 1.0 ? 1.0 / (1.0 - p) : 0.0", "1.0 / (1.0 - p)", "dropout"),
    ("drivers/flat.c", "start % FD_ALIGN;\n    if", "start % (FD_ALIGN / 2);\n    if", "place"),
    ("drivers/flat.c", "(size_t)(64 + done - tile)", "(size_t)(63 + done - tile)", "threads"),
    ("drivers/flat.c", "memcpy(before, bits + FD_TILE / 8, 8);", "", "threads"),
    ("drivers/flat.c", "fd_indices){t->start + i, NULL}", "fd_indices){t->start, NULL}", "threads"),
    (
        "drivers/flat.c",
        "f->saved + i / 8, 0, 0}, bits + 8, 0, m",
        "f->saved, 0, 0}, bits + 8, 0, m",
        "threads",
    ),
    ("drivers/draw.c", "d->stride[a - 1] - d->n[a] * d->stride[a]", "d->stride[a - 1]", "place"),
    ("drivers/walk.c", "bit -= above.n * above.bit;", "", "place"),
    ("drivers/tiles.h", "i % t->bias_length", "i % (t->bias_length + 1)", "fused"),
    ("drivers/flat.c", "first * FD_TILE, stop", "(first + 1) * FD_TILE, stop", "threads"),
    ("drivers/walk.c", "a.bit == b.n * b.bit", "1", "place"),
    ("drivers/walk.c", "mask ^= mask << k", "mask ^= mask << 1", "layouts"),
    (
        "drivers/walk.c",
        "w->axis[d].bit;\n    }\n    const int gather",
        "0;\n    }\n    const int gather",
        "place",
    ),
    ("drivers/rows.c", "first * s->row;\n        memset", "0;\n        memset", "fused"),
    ("drivers/rows.c", "(size_t)ids[i] * row,", "(size_t)i * row,", "shared"),
    ("drivers/rows.c", "l->bits[id / 8] >> id % 8", "l->bits[first / 8] >> first % 8", "shared"),
    ("runtime/pool.c", "left < job_chunk ? left : job_chunk", "job_chunk", "threads"),
    ("runtime/pool.c", "while (pool.active)", "while (0)", "threads"),
    ("runtime/pool.c", "|| pthread_mutex_trylock(&owner)", "", "threads"),
    (
        "runtime/pool.c",
        "registered = !pthread_atfork(NULL, NULL, after_fork)",
        "registered = 1",
        "faults",
    ),
    ("runtime/pool.c", "sigfillset(&all);", "sigemptyset(&all);", "faults"),
    ("runtime/pool.c", "pool_refused();\n", "", "faults"),
    ("kernels/apply.h", "v = MUL(v, scale);", "", "dropout"),
    ("drivers/flat.c", "f->saved ? f->saved + i / 8 :", "f->saved ? f->saved :", "dropout"),
    ("kernels/apply.h", "shift + (i - first), n - i", "shift, n - i", "dropout"),
    (
        "kernels/apply.h",
        "memcpy(o->y + i * SIZE, x, n * SIZE);",
        "memcpy(o->y + i * SIZE, x, 64 * SIZE);",
        "threads",
    ),
    ("kernels/apply.h", "SET(o->constants.dropped), b, j", "SET(0), b, j", "alpha"),
    (
        "kernels/apply.h",
        "ADD(v, LOAD(o->bias + (at & ~o->bias_skip)))",
        "ADD(v, LOAD(o->bias))",
        "fused",
    ),
    ("kernels/apply.h", "LOAD(o->residual + at), LOAD", "LOAD(o->residual), LOAD", "fused"),
    ("kernels/apply.h", "SET(0), b, j);\n    if (op", "v, b, j);\n    if (op", "fused"),
    ("kernels/apply.h", "F64_FROM_F32(value + k * F64_WIDTH)", "F64_FROM_F32(value)", "fused"),
    ("kernels/softmax.h", "(-88.03125)", "(-87.03125)", "softmax"),
    ("kernels/softmax.h", "(-709.08984375)", "(-708.08984375)", "softmax"),
    (
        "kernels/softmax.h",
        "#define SOFTMAX_LOWEST (-FLT_MAX)",
        "#define SOFTMAX_LOWEST (-1)",
        "softmax",
    ),
    ("kernels/softmax.h", "+ 31) / 32 * 32 : s->length;", ") / 32 * 32 : s->length;", "softmax"),
    ("kernels/softmax.h", "(UINT32_C(1) << (n - i)) - 1 : 0;", "~UINT32_C(0) : 0;", "softmax"),
    ("kernels/softmax.h", "sum == 0 ? 0 : 1 / sum", "1 / sum", "softmax"),
    ("kernels/softmax.h", "MUL(v, scale), zero, kept", "MUL(v, scale), zero, part", "softmax"),
    ("kernels/softmax.h", "one_over), zero, part, k)", "one_over), zero, kept, k)", "softmax"),
    ("kernels/softmax.h", "(first + j) % 8", "j % 8", "softmax"),
    ("kernels/softmax.h", "MUL(MUL(w, factor), SUB(g, mean))", "MUL(w, SUB(g, mean))", "softmax"),
    (
        "kernels/softmax.h",
        "(s->length - n) * SIZE);\n    memset(s->y",
        "0);\n    memset(s->y",
        "softmax",
    ),
    ("kernels/softmax.h", "mask_row[row] * s->mask_bytes", "mask_row[row]", "softmax"),
    ("kernels/softmax.h", "if (again)\n", "if (0)\n", "softmax"),
    ("kernels/gelu.h", "-10.0625", "-9.0625", "fused"),
    ("kernels/gelu.h", "10.03125)", "11.03125)", "fused"),
    ("kernels/gelu.h", "21.15234375", "22.15234375", "fused"),
    ("kernels/gelu.h", "* 0.044715)", "* 0.044716)", "fused"),
    ("kernels/gelu.h", "DIV(v, ADD", "DIV(u, ADD", "fused"),
    ("kernels/gelu.h", "MAX(GELU_LEAST, u);", "MAX(u, GELU_LEAST);", "fused"),
    ("kernels/gelu.h", "MIN(odds, SET(SIZE == 8 ? 0x1p1022 : 0x1p126))", "odds", "fused"),
    ("kernels/gelu.h", "3 * GELU_CUBIC", "2 * GELU_CUBIC", "fused"),
    ("drivers/tiles.h", "? FD_REPEAT_PAD : n", "? n : n", "own_mask"),
    ("drivers/flat.c", "~(length * fd_itemsize", "~(length / 2 * fd_itemsize", "fused"),
    ("kernels/apply.h", "o.bias += i * SIZE & ~o.bias_skip;", ";", "fused"),
    ("drivers/rows.c", "parts - 1, row", "parts - (parts > 1) - 1, row", "fused"),
    ("kernels/noise.h", "words_set(31), e", "words_set(32), e", "noise"),
    ("kernels/noise.h", "words_shl(*angle, 2)", "words_shl(*angle, 1)", "noise"),
    ("kernels/noise.h", "words_shr(w, 9)", "words_shr(w, 8)", "noise"),
    ("kernels/noise.h", "-0.16666655f", "-0.16666755f", "noise"),
    (
        "kernels/connect.h",
        ", bit += w.row_bits) {\n        const BITS",
        ") {\n        const BITS",
        "dropconnect",
    ),
    (
        "kernels/connect.h",
        "if (dx)\n            ((SCALAR *)dx)[r] += lane[0]",
        "if (dx)\n            ((SCALAR *)dx)[r] += lane[WIDTH - 1]",
        "dropconnect",
    ),
    ("drivers/connect.c", "i * c->length + t->row", "t->row", "dropconnect"),
    ("drivers/connect.c", "{start - skip, NULL}", "{start, NULL}", "dropconnect"),
    ("drivers/noise.c", "% FD_NOISE_BLOCK;\n    const", "% 2;\n    const", "noise"),
    ("drivers/noise.c", "i % t->sigma_length", "i % (t->sigma_length + 1)", "variational"),
    ("drivers/tiles.h", "column = i % row;", "column = 0;", "variational"),
    ("drivers/dropblock.c", "(63 - shift)", "(62 - shift)", "dropblock"),
    ("drivers/dropblock.c", "words[far] |= words[0] << shift;", ";", "dropblock"),
    ("drivers/dropblock.c", "if (at % 64 + m > 64)", "if (0)", "dropblock"),
    ("drivers/dropblock.c", "words[n - 1] |= UINT64_MAX << elements % 64;", ";", "dropblock"),
    (
        "drivers/dropblock.c",
        "first * s.maps * rows * columns",
        "first * s.maps * rows",
        "dropblock",
    ),
]

FLAGS = ["-O1", "-std=gnu11", "-ffp-contract=off", "-fPIC", "-pthread", "-w"]
CORE = "build/src/bindings/_core.c"
SOURCES = [path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").glob("[!b]*/*.c")]
KERNELS = ["simd/isa_avx2.c"]  # which the tests run
DRIVERS = [name for name in SOURCES if name.startswith("drivers/")]


def readers(file):
    """What has to be compiled again."""
    if file.endswith(".c"):
        return [file]
    return {"kernels/bits.h": KERNELS + DRIVERS, "drivers/tiles.h": DRIVERS}.get(file, KERNELS)


def compile_(source, folder, to):
    """A file of the folder `src`, or CORE, to an object."""
    folders = folder, ROOT / "fastdrop/include", sysconfig.get_path("include"), numpy.get_include()
    include = [f"-I{folder}" for folder in folders]
    path = ROOT / CORE if source == CORE else folder / source
    command = ["gcc", *FLAGS, *include, "-DNPY_NO_DEPRECATED_API=NPY_2_0_API_VERSION"]
    command += ["-c", path, "-o", to / f"{source.replace('/', '.')}.o"]
    return subprocess.run(command).returncode == 0


def prepare():
    """All objects of the sources as they are, and the package around them."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, check=True
    )
    rmtree(WORK, ignore_errors=True)
    (WORK / "objects").mkdir(parents=True)
    copytree(ROOT / "fastdrop", WORK / "fastdrop", ignore=ignore_patterns("*.so", "__pycache__"))
    for source in [CORE, *SOURCES]:
        assert compile_(source, ROOT / "src", WORK / "objects"), source


def survives(mutation):
    file, before, after, tests = mutation
    copytree(ROOT / "src", WORK / "src", dirs_exist_ok=True)
    text = (ROOT / "src" / file).read_text()
    assert text.count(before) == 1, f"{file}: {before!r} is there {text.count(before)} times"
    (WORK / "src" / file).write_text(text.replace(before, after))
    copytree(WORK / "objects", WORK / "mutated", dirs_exist_ok=True)
    for source in readers(file):
        if not compile_(source, WORK / "src", WORK / "mutated"):
            return f"{source} does not compile"
    objects = sorted((WORK / "mutated").glob("*.o"))
    library = WORK / "fastdrop" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(["gcc", "-shared", "-pthread", *objects, "-lm", "-o", library], check=True)
    paths = {"PYTHONPATH": str(WORK), "PYTHONSAFEPATH": "1", "FASTDROP_ISA": "avx2"}
    files = [*(ROOT / "tests").rglob(f"test_{tests}.py")]
    assert files, f"there is no test_{tests}.py"
    others = "not avx512 and not sse2 and not portable"
    command = ["-m", "pytest", "-qx", "-p", "no:cacheprovider", "-k", others]
    try:
        done = subprocess.run(
            [sys.executable, *command, *files],
            env={**os.environ, **paths},
            cwd=WORK,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        return ""
    return "" if done.returncode in (1, -11, -6) else done.stdout[-500:] + done.stderr[-500:]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    every = range(len(MUTATIONS))
    words = f"which faults, from 0 to {every[-1]}; all if none is named"
    parser.add_argument("number", nargs="*", type=int, help=words)
    chosen = parser.parse_args().number or every
    if not set(chosen) <= set(every):
        parser.error(words)
    prepare()
    survivors = 0
    for n in chosen:
        file, before, after, tests = MUTATIONS[n]
        told = survives(MUTATIONS[n])
        survivors += bool(told)
        shown = f"{n} {file}: {before!r} -> {after!r}, test_{tests}.py"
        print("SURVIVES" if told else "caught", shown, told, flush=True)
    print(f"{len(chosen)} faults, {survivors} not caught")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
