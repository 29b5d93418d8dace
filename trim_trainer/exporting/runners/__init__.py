"""What runs in the environment of another library, by path: these files import nothing of this package."""
