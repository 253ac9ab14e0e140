"""Files: images, saved networks, whole-or-absent writing. The only room that reads or writes images."""
