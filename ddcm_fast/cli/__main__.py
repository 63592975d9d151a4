import sys

from ddcm_fast.cli import main

sys.exit(main())
