"""What callers see while Redis is away for half a minute: `python -m tests.faults.outage`."""

import os

# See tests/faults/soak.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
