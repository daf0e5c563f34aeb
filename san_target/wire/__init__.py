"""Bytes <-> PDUs (RFC 7143 section 11). Pure."""
