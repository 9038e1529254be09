"""From images to soft tokens: reading, cutting into patches, the vision tower."""
