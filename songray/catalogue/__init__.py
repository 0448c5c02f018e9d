"""Where tracks come from. In reading order, those that run without Ray first:

sources     siblings that read a catalogue, and locate the audio of its tracks
frontier    which pages a crawl reads next
states      what a crawl compares of tracks, compactly
existing    the newest state of each track, which decides what a crawl stores
catalog     adds the contents of pages to the tables
crawl       the stage
"""
