"""The parts of `orthrus chat`: conversation, commands, settings, terminal, and the two kinds of answerers."""
