"""How a model learns: stages, the loop that runs them, and presets."""
