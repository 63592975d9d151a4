"""Microbenchmarks of the codebook operations, beside what one would otherwise do (docs/kernels/benchmarks.md).

What is timed (cases, work), how (timing, memory, roofs) and what is made of it (run, plot).
"""
