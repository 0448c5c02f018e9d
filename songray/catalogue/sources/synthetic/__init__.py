"""A generated catalogue with generated audio. In reading order:

styles         instruments, drums and styles, as tables
songs          the style, artist and album of each song
composition    the notes of a song
synthesis      the audio of a song
source         the options, and the metadata of the catalogue
server         serves the audio over HTTP
"""
