"""How the files of a folder of results are called, and the order of names."""

import re

# What follows the NAME of an image: sharp image, kernel, states of the networks, losses, checkpoint, record.
IMAGE, KERNEL = "_x.png", "_k.png"
IMAGE_NETWORK, KERNEL_NETWORK = "_xnet.pth", "_knet.pth"
HISTORY, CHECKPOINT, RECORD = "_history.csv", "_checkpoint.pth", ".json"
# What follows .NAME: the lock of a process that has the image in work.
LOCK = ".lock"

# Files of all images of a folder: the settings that they share, the images that could not be done.
CONFIG, FAILURES = "config.json", "failures.csv"

# The folder of a cluster's tasks within it: what was submitted, the tasks' logs, what became of photographs.
CLUSTER, TASKS, PHOTOS = "cluster", "tasks.json", "photos_*.jsonl"


def natural(name):
    """Sort key that puts im2 before im10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
