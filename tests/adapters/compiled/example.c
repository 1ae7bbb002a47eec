/* What a C user writes: dropout of anything that has a buffer, in place. */
#include <Python.h>
#include <fastdrop_api.h>

static PyObject *dropout(PyObject *self, PyObject *args)
{
    Py_buffer x;
    int dtype;
    double p;
    unsigned long long seed, call;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*idKK", &x, &dtype, &p, &seed, &call))
        return NULL;
    const size_t n = (size_t)x.len / (dtype == FASTDROP_FLOAT64 ? 8 : dtype == FASTDROP_FLOAT32 ? 4 : 2);
    Py_BEGIN_ALLOW_THREADS
    fastdrop->forward(dtype, x.buf, x.buf, NULL, n, 0, seed, call, p);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&x);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"dropout", dropout, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "example", NULL, -1, methods, 0, 0, 0, 0};

PyMODINIT_FUNC PyInit_example(void)
{
    return fastdrop_import() < 0 ? NULL : PyModule_Create(&module);
}
