"""Virtio 1.2 devices behind the virtio-mmio transport.

vCPU thread   register access ─► MmioTransport
loop thread   ioeventfd ─► MmioTransport.notify ─► VirtioDevice.queue_notify ─► Virtqueue
"""
