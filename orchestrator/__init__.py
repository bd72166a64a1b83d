"""Decides when: config, rounds, phases, journal, tracking, assembly, the command line."""
