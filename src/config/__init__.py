"""From YAML files and --set to one typed Config, or one line that says what is wrong.

Begin with load.py. The settings themselves and their defaults are in core/settings.py.
"""
