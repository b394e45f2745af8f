"""Load and share models: folders, the package's own models, the Hugging Face Hub, and checkpoints of others."""
