"""Without a GPU, Triton's kernels are tested in its interpreter, which has to be chosen before the first import."""

import importlib.util
import os
import random
import signal

import numpy as np
import pytest
import torch

THREADS = torch.get_num_threads()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background; tests of Ctrl-C send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _round_interpreted_products_once() -> None:
    """Have the interpreter's `dot` add up in float64, where sums of a tile's float16 or int8 products are exact.

    Its own is a float32 product of numpy's BLAS, whose order of sums depends on the processor and on the tile; the
    tests hold the kernels to the bit, as a matrix instruction, which has one order for every tile, does.
    """
    from triton.runtime import interpreter

    def create_dot(builder, a, b, c, *precision):
        products = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return interpreter.TensorHandle(products.astype(c.data.dtype) + c.data, c.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot


if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton") is not None:
        _round_interpreted_products_once()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test draws the same on as many threads, whichever ran before it; fixtures follow this, module-wide ones too."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries draw from it)
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
