"""The routes of the server, a file each; `router` makes them for a service."""
