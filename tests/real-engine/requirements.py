"""Prints what an installed distribution needs, for pip.

usage: requirements.py DISTRIBUTION

Local versions such as `torch==2.13.0+cpu` are only on their project's own index. The same version without the suffix
has the same ABI and runs without a GPU, so that one is asked for.
"""

import importlib.metadata
import re
import sys


def main(distribution):
    for requirement in importlib.metadata.requires(distribution) or []:
        if not re.search(r"\bextra\s*==", requirement):
            print(re.sub(r"(==[\w.]+)\+\w+", r"\1", requirement))


if __name__ == "__main__":
    main(*sys.argv[1:])
