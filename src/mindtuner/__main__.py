import sys

from mindtuner.cli import main

sys.exit(main())
