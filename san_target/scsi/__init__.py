"""What a command means: CDBs, sense, pages, reservations, block and copy commands (SAM, SPC, SBC). Pure."""
