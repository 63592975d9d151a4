import sys

from ddcm_fast.models.train.photo import main

sys.exit(main())
