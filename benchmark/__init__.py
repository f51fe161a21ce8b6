"""How fast the backward passes are beside torch's own, JAX, scikit-learn and NumPy; `scripts/benchmark.py` runs it."""
