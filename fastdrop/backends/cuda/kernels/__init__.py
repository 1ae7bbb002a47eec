"""The GPU's kernels: one source for every target, a GPU, this CPU, or Python; see `targets`.

Each kernel is built by a cached function of the target's name, the dtype and its options; what it
calls, too, so that the options are constants in the code. `fastdrop.backends.cuda.table` lists the
kernels. From the bottom up: `targets`, with how integers are written in `targets.words`; `philox`
and `variates`, random bits and noise; `layout`, `elements`, `operations`, `chunks`: memory, one
element, 16 bytes of them; on these the kernels in `dropout`, `masks`, `noise`, `sums`, and of one
op each `rows` (embedding_dropout), `blocks` (drop_block), `connect` (dropconnect).

A thread owns 16 elements at a time, the Philox block that decides them and their 2 bytes of the
packed mask; it loads and stores 16 bytes at once. What goes together is one parameter, a tuple.
"""
