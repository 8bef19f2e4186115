"""Finding the students that will be best: who proposes, within which budget, and how the scored ones are ranked."""
