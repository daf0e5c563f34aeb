"""Where a volume's blocks are: partition map, range locks, router."""
