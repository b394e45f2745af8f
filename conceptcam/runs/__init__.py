"""One training run as a folder: model, options, history, figures and pictures."""
