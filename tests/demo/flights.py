"""Replays a year of flights through the service and checks every counter; `make demo` runs it."""

import sys
from pathlib import Path

# Run by its path, Python looks for modules beside this file only.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.demo.command import main

if __name__ == "__main__":
    main()
