"""Kaggle: its client, its errors in one line, downloads unpacked, and the log of what was submitted.

Nothing else imports the kaggle package.
"""
