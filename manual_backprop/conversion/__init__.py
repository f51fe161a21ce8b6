"""`convert` and `revert`: drop-in layers put into a model of torch's, and taken out again."""
