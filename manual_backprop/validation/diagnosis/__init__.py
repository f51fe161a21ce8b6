"""From two gradients that differ to the most likely mistake."""
