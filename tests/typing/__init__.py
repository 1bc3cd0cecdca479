"""What type checkers must infer; never run, checked by ``script/lint``."""
