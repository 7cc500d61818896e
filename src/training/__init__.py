"""One epoch after another: batches, the loop, checkpoints, inference, the log of a run.

The order of images is a pure function of seed, fold and epoch, so a stopped run resumes exactly.
"""
