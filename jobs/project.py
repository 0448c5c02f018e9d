"""`songray project`, for `ray job submit` on nodes where songray is not installed."""

from songray.command import run

if __name__ == "__main__":
    run("project")
