"""A generated catalogue with generated audio. In reading order:

styles         instruments, drums and styles, as tables
songs          the style, artist and album of each song
source         the options, and the metadata of the catalogue
composition    the notes of a song
synthesis      the audio of a song
server         serves the audio over HTTP
"""
