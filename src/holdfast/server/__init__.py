"""Door: HTTP in. The Pods of this machine for whoever has their keys: owners, and runs with a token."""
