"""Who runs in which thread, and how it is stopped."""
