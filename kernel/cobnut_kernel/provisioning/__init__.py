"""Where a kernel's process comes from, and who ends it when its owner cannot."""
