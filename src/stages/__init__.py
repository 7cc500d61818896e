"""What ./run.sh runs: prepare split train predict ensemble evaluate submit, in order; and study.

Each file reads from top to bottom as its docstring says: what it READS and WRITES. A stage never
imports a stage; what two of them share lives on a floor below.
"""
