"""The decode step in C++ (`decode.cpp`), built by the package's normal build where it can be."""
