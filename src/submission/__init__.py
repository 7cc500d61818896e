"""From the contest's sample to a file that is checked before it takes its name.

The verifier (verify.py) shares no code with the writer (writer.py): keep it so.
"""
