"""What is on the screen: attributes go down to them, messages come up."""
