"""The iSCSI rules: login, negotiation, sequence numbers, data transfer, tasks (RFC 7143). Pure."""
