"""The durable facts of the group: one small store interface and its implementations."""
