# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
# cython: freethreading_compatible=True
"""Buffers to pointers: hands NumPy arrays to the C kernels without the GIL.

The public functions have checked what comes here and say what is wrong in the user's words. What
would let a kernel read or write elsewhere is checked again, in few words, as objects can change and
anyone can make them: no None for a draw, dtypes, layouts, shapes, lengths of masks. Not checked are
the settings, and the numbers of rows.

A packed mask is a bytes object with `BITS_PAD` bytes of room behind its last bit. Bit i % 8 of byte
i // 8 says whether element i, in C order, of the Place it was drawn for is kept.
"""
import os
import warnings

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from drivers cimport *

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    int NPY_HALF
    bint PyArray_SAMESHAPE(cnp.ndarray, cnp.ndarray)
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, void *, int)

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*)(void *) except -1, void *) nogil
    int PyObject_GenericSetAttr(object, object name, object value) except -1

cdef extern from *:
    """
    #ifdef Py_LIMITED_API
    #define BUILT_FOR "every Python from 3.11 on (abi3)"
    #else
    #define BUILT_FOR "this version of Python alone"
    #endif
    """
    const char *BUILT_FOR

cdef extern from *:
    """
    #if defined(_MSC_VER) && !defined(__clang__)
    #define OF_A_THREAD __declspec(thread)
    #else
    #define OF_A_THREAD _Thread_local
    #endif
    static OF_A_THREAD uint64_t deliveries;
    static OF_A_THREAD PyObject *lent;
    """
    # How often this thread has written an array that a caller gave. Whoever has to take something
    # back when a call raises sees by it whether the call had written before.
    uint64_t deliveries
    # The random calls that the layer's call has taken which this thread is in: a list, or NULL.
    PyObject *lent

BUILD = f"{fd_compiler().decode()}, for {BUILT_FOR.decode()}"
BITS_PAD = FD_BITS_PAD
BIAS_ROOM = FD_REPEAT_PAD
NOISE_PAD = FD_NOISE_PAD
PARTS = FD_PARTS
DROPOUT = FD_DROPOUT
DROPOUT_ADD = FD_DROPOUT_ADD
BIAS_DROPOUT_ADD = FD_BIAS_DROPOUT_ADD
RELU_DROPOUT = FD_RELU_DROPOUT
ALPHA_DROPOUT = FD_ALPHA_DROPOUT
ZONEOUT = FD_ZONEOUT
BIAS_RELU_DROPOUT = FD_BIAS_RELU_DROPOUT
BIAS_GELU_DROPOUT = FD_BIAS_GELU_DROPOUT
BIAS_GELU_BACKWARD = FD_BIAS_GELU_BACKWARD
# Ops that read an array of any layout as it is, and keep the order of its axes.
ANY_LAYOUT = FD_DROPOUT, FD_ALPHA_DROPOUT
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = FD_FLOAT32, FD_FLOAT64, FD_FLOAT16, FD_BFLOAT16
NORMAL = FD_NORMAL
LOGISTIC = FD_LOGISTIC
NOISE_SCALE = FD_NOISE_SCALE
NOISE_ADD = FD_NOISE_ADD
CONCRETE = FD_CONCRETE

# For compiled code: fastdrop/include/fastdrop_api.h, and XLA, which asks for that name.
_C_API = PyCapsule_New(<void *> &fd_api, "fastdrop._core._C_API", NULL)
_XLA_DROPOUT = PyCapsule_New(<void *> fd_xla_dropout, "xla._CUSTOM_CALL_TARGET", NULL)

include "settings.pxi"
include "arrays.pxi"
include "values.pxi"
include "steps.pxi"
include "masks.pxi"
include "memory.pxi"
include "rows.pxi"
include "noise.pxi"
include "softmax.pxi"
include "linear.pxi"
include "dropblock.pxi"
