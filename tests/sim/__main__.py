"""
python -m tests.sim COMMAND [ARGUMENT ...] - the long runs of what the tests do in little

Each command is the function main() of the module of that name.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = ("schedules", "cluster", "growth")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m tests.sim {'|'.join(COMMANDS)} [--help]")
    sys.exit(importlib.import_module(f"tests.sim.{sys.argv[1]}").main(sys.argv[2:]))
