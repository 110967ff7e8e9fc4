"""What a run leaves behind: its folder's files, samples and checkpoints; one writer, one reader."""
