"""Compiled loops over host arrays: what an augmentation does on the CPU, beside its DALI operators."""
