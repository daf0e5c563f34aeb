"""The members as one: volumes, membership, load, balancing, migration."""
