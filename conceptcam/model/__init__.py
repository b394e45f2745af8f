"""What is computed: image -> features -> concepts -> prototypes -> task."""
