"""`python -m trim_trainer.cli` is `trim-trainer`."""

import sys

from .main import main

sys.exit(main())
