"""Mask bits at p = 1/2, seed 1, call after call, to stdout without end: for a public battery.

python dev/trust/bits.py | dieharder -g 200 -a
"""

import sys

import fastdrop as fd


def main():
    rng = fd.Rng(1)
    try:
        while True:
            sys.stdout.buffer.write(fd.keep_mask(1 << 26, 0.5, rng=rng, packed=True))
    except BrokenPipeError:
        sys.stderr.close()  # the battery has what it wanted; no complaint at exit either


if __name__ == "__main__":
    main()
