"""Believe a model, explain what it says, and draw it."""
