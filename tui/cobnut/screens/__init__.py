"""The console, and what opens over it."""
