"""What the service has to have; without it a run skips that part instead of failing."""

from typing import Final

#: Whether every run ends with Verify. False: a service without it passes too.
VERIFY_REQUIRED: Final = True
#: Whether RebuildPartition has to be there.
REBUILD_REQUIRED: Final = True
