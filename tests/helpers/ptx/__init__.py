"""Executes compiled PTX in NumPy, one array a register: what the compiler really made.

    memory = Memory()
    x = memory.put(array)  # an address
    Kernel(text).launch(memory, grid, block, x, array.size)
    memory.get(x)

All threads of a launch run in lockstep as long as they agree; where they do not, those with the
lowest program counter go first; at an exchange they wait for the others of their warp. Strict on
purpose. Each of these is a `Fault`: an instruction or modifier that is not in the tables, a
register read before it is written, an access out of bounds or misaligned, a byte that two threads
write, or that one reads and another writes, an exchange that a thread of the warp never comes to.

Not modelled, as no kernel here uses it: shared and local memory, barriers.
"""

from helpers.ptx.kernel import Kernel
from helpers.ptx.memory import Fault, Memory

__all__ = ["Fault", "Kernel", "Memory"]
