"""The findings of a validation, and the forms they are written in."""
