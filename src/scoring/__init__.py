"""From predictions to numbers: scores, tuned decisions, ensembles, comparisons, intervals.

Whatever is tuned here is tuned leave-one-fold-out: no image is scored by what it has tuned.
"""
