"""The commands of this project: `main` finds them by name, the other modules hold one command each."""
