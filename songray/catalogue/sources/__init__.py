"""Where songs come from: siblings behind one interface (base.Source), all listed in registry.

Nothing is imported here: a worker that resolves a link of one service need not load the libraries of all.
"""
