"""What everything else stands on: settings, paths, safe writing, locks, freshness, the console.

Nothing here knows about images or networks.
"""
