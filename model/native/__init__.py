"""The decode step in C++ (`decode.cpp`), compiled beside it by `build.py` where it can be."""
