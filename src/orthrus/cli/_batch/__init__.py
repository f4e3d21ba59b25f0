"""The parts of `orthrus batch`: the requests of a file, its output, and the runner between them and a server."""
