"""`python -m ddcm_fast.bench` is `ddcm bench`."""

import sys

from ddcm_fast.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
