"""`python -m reasonrl` is the console command."""

import sys

from reasonrl.cli import main

sys.exit(main())
