"""The command line: `conceptcam COMMAND`."""
