"""Member to member: frames, link (client), service (server)."""
