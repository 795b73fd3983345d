"""Speed measured against peers: each prints a table for people and one last line of JSON."""
