"""The model: image -> features -> concepts -> prototypes -> task."""
