"""`mb.Monitor`: the errors, saturation and agreement of any torch model, in TensorBoard."""
