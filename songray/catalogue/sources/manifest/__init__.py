"""Files that list tracks or playlists. In reading order:

million    the format of the Million Playlist Dataset
source     the options, the files, and their rows as tracks and playlist entries
"""
