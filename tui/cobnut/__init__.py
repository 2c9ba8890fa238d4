"""A notebook console for the terminal."""
