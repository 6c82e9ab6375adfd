"""Pure array maths: no configuration, no tokenizer, no global seed. One group at a time."""
