if __name__ != "reasonrl.eval":
    raise ImportError("import this folder as `reasonrl.eval`, not `eval` (see docs/decisions/0001-packaging.md)")
