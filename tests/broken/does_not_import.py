"""Broken on purpose: fails while it is imported."""

raise RuntimeError("no licence for this file")
