"""Dropout inside other libraries: one module each, named as the library, which it needs.

Nothing here is imported by `fastdrop` itself.
"""
