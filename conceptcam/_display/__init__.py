"""What people see besides pictures of images: tables of text, bars of progress, figures of matplotlib."""
