"""The san-target command; it talks to the HTTP API."""
