"""Start, watch and stop kernels: one by `AsyncKernelManager`, many by id in `AsyncMultiKernelManager`."""
