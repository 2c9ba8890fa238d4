"""The kernel's program: `cobnut-kernel`, and `python -m cobnut_kernel`."""

from __future__ import annotations

from cobnut_kernel.command_line import main

if __name__ == "__main__":
    main()
