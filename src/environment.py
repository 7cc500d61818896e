"""Does this interpreter have what requirements.txt names? Exit code 0: yes, 10: no.

run.sh hands this to an interpreter of which nothing is known yet: no project module may be
imported here, and the first lines must be readable by any Python.
"""

import sys

if sys.version_info < (3, 10):
    sys.exit(10)

from importlib import metadata  # noqa: E402

try:
    from packaging.requirements import Requirement

    with open("requirements.txt", encoding="utf-8") as lines:
        needs = [Requirement(n) for n in (line.split("#")[0].strip() for line in lines) if n]
    for need in needs:
        if not need.specifier.contains(metadata.version(need.name), prereleases=True):
            sys.exit(10)
except ModuleNotFoundError:  # a package, or `packaging` itself
    sys.exit(10)
