"""What users type and import: the `pathar` command and an HTTP client. Loads the rest lazily."""
