if __name__ != "reasonrl.methods":
    raise ImportError("import this folder as `reasonrl.methods`, not `methods` (see docs/decisions/0001-packaging.md)")
