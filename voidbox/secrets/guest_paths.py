"""Where a guest has what it is to trust."""

CERTIFICATE_PATH = "/etc/ssl/voidbox/ca.pem"  # the sandbox's own certificate
BUNDLE_PATH = "/etc/ssl/voidbox/ca-bundle.pem"  # that, and all that the guest trusted before
