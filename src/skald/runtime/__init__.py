"""What runs in a process: one role per file, supervised and stopped in order by ``service.py``."""
