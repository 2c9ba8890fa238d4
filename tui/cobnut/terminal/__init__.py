"""Between the terminal and the program: what its bytes mean, and how it is held."""
