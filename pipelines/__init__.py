"""The stories: each pipeline reads top to bottom in a minute and has no logic of its own."""
