"""Lists of songs and of playlists in files."""
