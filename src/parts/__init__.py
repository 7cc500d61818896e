"""What people add to: networks, losses, augmentations, filters, metrics and others.

One plain dict a file: write a function, name it in the dict, and name it in a YAML.
"""
