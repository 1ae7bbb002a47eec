"""Keystreams: Philox4x32 with 7 rounds, and from its words to keep bits.

The group of parameters that a draw takes is ``draw = keys, call, t, f``. keys: those of the rounds,
see `round_keys`; as kernel arguments they cost no registers. t and f: the upper 8 bits (9, at rate
1) and the lower 24 of the rate's threshold.

A *group* is 16 elements, from a multiple of 16 on: one Philox block, a byte each, or at rate 1/2
half a word, a bit each.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from fastdrop import rng
from fastdrop.backends.cuda.kernels.targets import U32, U64, target

BYTES, REFINEMENT, BITS = (U32(d << 28) for d in (rng.BYTES, rng.REFINEMENT, rng.BITS))
M0, M1 = U32(0xD2511F53), U32(0xCD9E8D57)

EACH_BYTE, TOP_BITS, LOW_BITS = U32(0x01010101), U32(0x80808080), U32(0x7F7F7F7F)


def round_keys(seed: int) -> tuple[Any, ...]:
    """The two words of each round's key."""
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    weyl = ((r * 0x9E3779B9, r * 0xBB67AE85) for r in range(rng.ROUNDS))
    return tuple(U32(k & 0xFFFFFFFF) for a, b in weyl for k in (k0 + a, k1 + b))


@cache
def philox(where: str) -> SimpleNamespace:
    """``four(number, domain, keys, call)``: the words of a Philox block; domain is in the upper 4
    bits of its word. ``word(index, domain, keys, call)``: one of a keystream.
    """
    t = target(where)
    device, high, fourth = t.device, t.high, t.fourth

    @device
    def round_of(c, k0, k1):
        return (
            U32(high(c[2], M1) ^ c[1] ^ k0),
            U32(c[2] * M1),
            U32(high(c[0], M0) ^ c[3] ^ k1),
            U32(c[0] * M0),
        )

    @device
    def four(number, domain, keys, call):
        c = U32(number), U32(number >> 32 | domain), U32(call), U32(call >> 32)
        c = round_of(c, keys[0], keys[1])
        c = round_of(c, keys[2], keys[3])
        c = round_of(c, keys[4], keys[5])
        c = round_of(c, keys[6], keys[7])
        c = round_of(c, keys[8], keys[9])
        c = round_of(c, keys[10], keys[11])
        return round_of(c, keys[12], keys[13])

    @device
    def word(index, domain, keys, call):
        return fourth(four(index >> 2, domain, keys, call), index)

    return SimpleNamespace(four=four, word=word)


@cache
def keep_bits(where: str) -> SimpleNamespace:
    """``of_group["bytes"](number, draw)``: keep bits of a group at any rate but 1/2;
    ``of_group["bits"]``: at 1/2. ``from_any``: the same for 16 elements from any index on.
    """
    t = target(where)
    device, clz, funnel = t.device, t.clz, t.funnel
    four, word = philox(where).four, philox(where).word
    nibble, sixteen = U32(4), t.sixteen

    @device
    def at_least(w, limit):
        """Bits 28 ... 31: whether bytes 0 ... 3 of w are at least t. limit: t in each byte, less
        128 if t is not below; and all bits set if t is below 128, else none.
        """
        low, under = limit
        above = U32((w | TOP_BITS) - low)
        most = w & above | under & (w | above)  # of three bits, what two are
        return U32((most & TOP_BITS) * U32(0x00204081))

    @device
    def equal(w, tie):
        """Bits 0, 8, 16, 24: whether bytes 0 ... 3 of the two words are equal."""
        v = U32(w ^ tie)
        v = (v & LOW_BITS) + LOW_BITS | v
        return U32(U32(~(v | LOW_BITS)) >> 7)

    @device
    def refined(keep, w, number, draw):
        """The keep bits of a group; elements whose byte in w equals t are looked at again."""
        keys, call, t, f = draw
        tie = U32(t * EACH_BYTE)
        # Element 4 j + k has bit 8 k + j here.
        ties = equal(w[0], tie) | equal(w[1], tie) << 1
        ties = U32(ties | equal(w[2], tie) << 2 | equal(w[3], tie) << 3)
        while ties != U32(0):
            # The highest first, wherever it is, so that the threads of a warp go together.
            bit = U32(U32(31) - clz(ties))
            ties = U32(ties ^ U32(1) << bit)
            at = U32((bit & U32(3)) << 2 | bit >> 3)
            if word(number << 4 | U64(at), REFINEMENT, keys, call) >> 8 < f:
                keep = U32(keep & ~(U32(1) << at))
        return keep

    @device
    def of_bytes(number, draw):
        keys, call, t, f = draw
        w = four(number, BYTES, keys, call)
        half = t >> 7 != U32(0)
        limit = U32((t - U32(128) if half else t) * EACH_BYTE), U32(0 if half else 0xFFFFFFFF)
        keep = U32(at_least(w[3], limit) >> 28)
        keep = funnel(keep, at_least(w[2], limit), nibble)
        keep = funnel(keep, at_least(w[1], limit), nibble)
        keep = funnel(keep, at_least(w[0], limit), nibble)
        if f != U32(0):
            keep = refined(keep, w, number, draw)
        return keep

    @device
    def of_bits(number, draw):
        keys, call, _, _ = draw
        w = word(number >> 1, BITS, keys, call)
        return sixteen(w, U32((U32(number) & U32(1)) << 4))

    of_group = {"bytes": of_bytes, "bits": of_bits}

    def any_start(of_group: Any) -> Any:
        @device
        def keep16(index, draw):
            number = index >> 4
            both = U32(of_group(number, draw) | of_group(number + U64(1), draw) << 16)
            return sixteen(both, U32(U32(index) & U32(15)))

        return keep16

    from_any = {source: any_start(f) for source, f in of_group.items()}
    return SimpleNamespace(of_group=of_group, from_any=from_any)
