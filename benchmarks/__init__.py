"""What is claimed, measured: speed beside peers and under load, the same bits at any load, memory.

Each prints a table for people and one last line of JSON.
"""
