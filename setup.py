"""Maps the four top-level folders into the package: `methods/` imports as `reasonrl.methods`, and so on.

`pyproject.toml` alone cannot rename packages it finds, and a fixed list there would leave new subfolders out of the wheel.
"""

from setuptools import find_packages, setup

SIBLINGS = ["methods", "eval", "conf", "recipes"]

setup(
    packages=find_packages(include=["reasonrl", "reasonrl.*"])
    + [f"reasonrl.{p}" for p in find_packages(include=[g for s in SIBLINGS for g in (s, f"{s}.*")])],
    package_dir={f"reasonrl.{s}": s for s in SIBLINGS},
)
