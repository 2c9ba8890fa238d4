"""The kernel process: it answers requests and runs cells."""
