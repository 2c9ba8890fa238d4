"""How a kernel's life ends: by request, by signal, with its owner, and always."""
