"""What happens when an initiator is hostile: see docs/hostile-input.md."""
