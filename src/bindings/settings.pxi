# What every call reads: kernels, threads, sizes. Any thread may set them.

settings.kernels = fd_kernels_at(0)
settings.non_temporal_bytes = fd_cache_bytes() // 2  # x passes through the cache, too


def available_isas():
    """Names of the kernel tables that this CPU can run, the fastest first."""
    names = []
    cdef int i = 0
    while fd_kernels_at(i) != NULL:
        names.append(fd_kernels_at(i).name.decode())
        i += 1
    return tuple(names)


def get_isa():
    """Name of the kernel table in use."""
    return settings.kernels.name.decode()


def set_isa(str name not None, /):
    """Use a kernel table from now on; ValueError if this CPU cannot run it."""
    names = available_isas()
    if name not in names:
        offered = ", ".join(names)
        raise ValueError(f"ISA {name!r} is not among those of this CPU and build: {offered}")
    settings.kernels = fd_kernels_at(names.index(name))


if os.environ.get("FASTDROP_ISA"):
    try:
        set_isa(os.environ["FASTDROP_ISA"])
    except ValueError as error:
        raise ImportError(f"FASTDROP_ISA: {error}") from None


def get_threads():
    """How many threads a call may use."""
    return settings.threads


def set_threads(int n, /):
    """Let a call use n threads, the caller's included."""
    settings.threads = n


cdef int warn_refused(void *unused) except -1:
    # It comes to some line or other behind the call, which has done its work.
    try:
        warnings.warn(
            "the system refused a thread; fastdrop goes on with fewer, set_num_threads sets how "
            "many",
            RuntimeWarning,
        )
    except RuntimeWarning as error:
        tell(error)
    return 0


cdef void tell(error) noexcept:
    """Hands an error to sys.unraisablehook, as Cython does where a function can raise none."""
    raise error


cdef void on_refused() noexcept nogil:
    Py_AddPendingCall(warn_refused, NULL)  # as kernels run without the GIL


pool_refused = on_refused


def set_piece(int64_t n, /):
    """Draw at most n elements of a mask at once where none is kept.

    Returns
    -------
    int
        What it was: for tests.
    """
    before = settings.piece
    settings.piece = n
    return before


def set_non_temporal_bytes(uint64_t n, /):
    """Write results of n bytes and more past the caches.

    Returns
    -------
    int
        What it was: for tests.
    """
    before = settings.non_temporal_bytes
    settings.non_temporal_bytes = n
    return before


def use_bfloat16(int num, /):
    """Tell NumPy's number of the bfloat16 type."""
    settings.bfloat16 = num
