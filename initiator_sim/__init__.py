"""The bundled initiator simulator."""
