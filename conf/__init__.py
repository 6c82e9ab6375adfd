if __name__ != "reasonrl.conf":
    raise ImportError("import this folder as `reasonrl.conf`, not `conf` (see docs/decisions/0001-packaging.md)")
