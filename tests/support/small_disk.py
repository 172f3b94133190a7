"""A small disk, to be filled."""

import subprocess


def mount_small_disk(folder, size="64k"):
    """Mounts a file system in memory on a folder. Returns whether this user may do so."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    return not subprocess.run(command, capture_output=True, check=False).returncode


def fill_disk(folder):
    """Fills the disk of a folder, and returns the file that does."""
    filler = folder / "filler"
    try:
        with filler.open("wb") as file:
            while True:
                file.write(bytes(1024))
                file.flush()
    except OSError as error:
        assert "No space left" in str(error)
    return filler


def unmount(folder):
    subprocess.run(["umount", str(folder)], check=True)
