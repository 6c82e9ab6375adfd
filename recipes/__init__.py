if __name__ != "reasonrl.recipes":
    raise ImportError("import this folder as `reasonrl.recipes`, not `recipes` (see docs/decisions/0001-packaging.md)")
