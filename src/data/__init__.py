"""Images, masks, tables and predictions as they lie on disk, and how they are read.

Files from outside are read here, so this is where each is checked.
"""
