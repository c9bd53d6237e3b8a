"""Seeded schedules of faults against a real service, and a ledger that must be right after each.

`python -m tests.faults.soak --seeds 1-200`; one seed is one schedule, and gives the same one again.
"""

import os

# Stores are started while gRPC's threads run. Its handlers for forks can't cope with that and end
# the child before it is a server; a child that becomes another program needs none of them.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
