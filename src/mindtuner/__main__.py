"""``python -m mindtuner`` is ``mindtuner``."""

import sys

from mindtuner.cli import main

sys.exit(main())
