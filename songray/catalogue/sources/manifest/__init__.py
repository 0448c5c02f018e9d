"""Files that list tracks or playlists. In reading order:

million    the format of the Million Playlist Dataset
formulas   cells that a spreadsheet would execute
rows       the rows of a file, whatever its format
source     the options, the files, and their rows as tracks and playlist entries
"""
