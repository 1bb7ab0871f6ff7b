"""``python -m dafast`` is the command ``dafast``."""

import sys

from .cli import main

sys.exit(main())
