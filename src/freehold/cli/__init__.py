"""The command line: one thin file a command group; nothing is imported before the command that needs it runs."""
