"""Breaks somebody's backward on purpose, to see whether his tests notice."""
