"""Jobs (what each stage reads and writes), the driver that runs them, and what stages share.

A new stage is declared in jobs.py. Nothing here knows what a network is.
"""
