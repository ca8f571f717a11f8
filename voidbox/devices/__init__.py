"""Devices of a PC that a guest without PCI still expects, behind one bus."""
