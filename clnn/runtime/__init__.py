"""Floor 1: devices, programs, memory and recording; everything above launches kernels through here."""
