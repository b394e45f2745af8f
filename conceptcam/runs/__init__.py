"""One training run as a folder."""
