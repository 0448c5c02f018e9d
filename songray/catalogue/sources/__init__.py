"""The sources of tracks: siblings that implement base.Source, each one module or folder. In reading order:

base         the interface, and what pages contain
names        the names of all sources
tonality     tempo, key and mode, as catalogues write them
reading      the two ways to read pages
folder, manifest, deezer, itunes, spotify, synthetic
registry     all sources by name, and the services that locate audio
"""
