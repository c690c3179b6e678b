"""One file an experiment: its id is the file's stem with `-` for `_`, its first line its title."""
