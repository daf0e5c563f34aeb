"""A whole group with its initiators in one process, under virtual time: the same seed gives the same run."""
