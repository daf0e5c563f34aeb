"""A group of equal iSCSI SAN servers: one portal, plain disks, spread volumes."""

__version__ = "0.1.0"
