"""Which sockets, connections and processes belong to what the kernel counts."""
