"""`python -m ddcm_fast.doctor` is `ddcm doctor`."""

import sys

from ddcm_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
