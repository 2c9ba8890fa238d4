"""What the kernel says: streams, displays and descriptors on their way to iopub, and the journal of it."""
