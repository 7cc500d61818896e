"""Kaggle: its client, its errors in one line each, downloads unpacked, and the log of submissions.

Nothing else imports the kaggle package.
"""
