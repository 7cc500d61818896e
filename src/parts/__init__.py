"""What people add to: networks, losses, augmentations, filters, metrics and others.

One plain dict a file: write a function, name it in the dict, and name it in a YAML. Besides these,
network.py and building.py make what train and predict use of an entry of MODELS, and check.py
checks every name before training.
"""
