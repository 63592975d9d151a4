import sys

from ddcm_fast.models.train.command import main

sys.exit(main())
