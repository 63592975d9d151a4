"""The triton backend's kernels (installed as ddcm_fast.kernels): see operations.py for what they offer.

This file imports nothing: in a checkout its folder also answers to the name of an unrelated package, `kernels`, that
transformers looks for by importing it, and that import must not fail where triton is missing.
"""
