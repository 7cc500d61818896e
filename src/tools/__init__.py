"""What is asked for by name: fetch, send, bundle, infer, export, explore and others.

Each file has run(…); nothing here is needed for a result to exist, and no tool imports another
without need.
"""
