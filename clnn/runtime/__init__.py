"""Devices, programs, memory and recording; everything above launches kernels through here."""
