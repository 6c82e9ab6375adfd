"""Set before any test module imports verl: which platform it runs on is decided once, at its first import."""

import os

os.environ.setdefault("VERL_PLATFORM", "cpu")
