"""What the bytes mean: messages, signatures and connection files, without any input or output."""
