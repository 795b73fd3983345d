"""The rows of the dashboard, each in a module; `panels` has what they are made of."""
