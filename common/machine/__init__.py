"""The machine that a process runs on: paths, installed code, processes, a holder's kit."""
