"""The programs behind ``python -m fastdrop bench`` and ``info``."""
