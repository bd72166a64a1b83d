"""Ways to make one score of many, one file each."""
