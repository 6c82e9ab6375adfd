"""Set before any test module imports torch or verl.

verl decides once, at its first import, which platform it runs on. Torch's threads wait for each other while they spin: two a
process, beside other processes on as many cores, make tests of small models ten times slower than one.
"""

import os

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
