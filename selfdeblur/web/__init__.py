"""``selfdeblur serve``: a page in a browser that takes the blur out of a picture."""
