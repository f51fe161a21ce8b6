"""How fast the backward passes are, beside torch's own, JAX, scikit-learn and NumPy: what `scripts/benchmark.py` runs."""
