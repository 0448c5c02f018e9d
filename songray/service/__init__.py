"""The Ray Serve application that answers over HTTP, and the page that it serves."""
