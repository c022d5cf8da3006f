"""What Papyra costs, as ratios to references measured in the same run."""
