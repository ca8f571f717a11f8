"""The network stack's adapter to the host: sockets, resolvers, published ports. All its I/O."""
