"""How long tests wait: CAISSON_TEST_TIMEOUT is what a command may take, in seconds; other limits grow with it."""

import os

BOOT_TIMEOUT = int(os.environ.get("CAISSON_TEST_TIMEOUT", "60"))
PATIENCE = max(1, BOOT_TIMEOUT / 60)
