"""A federation across machines as its users start it: the folder of its Flower app, the server's app, the resident client."""
