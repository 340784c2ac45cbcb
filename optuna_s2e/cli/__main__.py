"""`python -m optuna_s2e.cli` is the `s2e` command."""

import sys

from optuna_s2e.cli import main

sys.exit(main())
