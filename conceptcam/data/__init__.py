"""Bring images: readers that all give the same items, with labels, boxes, preprocessing and augmentation."""
