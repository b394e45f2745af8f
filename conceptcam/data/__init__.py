"""Data: readers that all give the same items."""
