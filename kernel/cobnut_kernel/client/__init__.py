"""Talk to a running kernel: requests out, replies and outputs to whoever asked."""
