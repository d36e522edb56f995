"""Many users at once: task states, scores, top-k lists, streamed."""
