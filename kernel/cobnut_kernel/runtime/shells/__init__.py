"""IPython's shells, and what belongs to them."""
