"""The verl engine: the only folder that imports verl or ray."""
