"""The debugger: front ends speak the debug adapter protocol with it, and pydevd does the work."""
