"""Pages and pictures for people: HTML, figures, and the facts in them.

Nothing reads them back, so their form is free to change.
"""
