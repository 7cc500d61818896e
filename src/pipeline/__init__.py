"""Jobs (what each stage reads and writes), the driver that runs them, and what stages share.

A new stage is declared in jobs.py. The driver imports a stage, and torch, only when it has work.
"""
