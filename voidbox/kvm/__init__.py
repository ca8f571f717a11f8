"""The KVM ioctl layer: one method an ioctl, kernel names kept, no policy."""

KVM_DEVICE = "/dev/kvm"
