"""What `ki-ros <command>` does, one module a command."""
