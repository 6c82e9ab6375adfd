"""Parts that several methods share. Each file holds one slot; each class is one choice on the command line."""
