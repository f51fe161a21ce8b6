"""What a validation found, and the forms it is written in."""
