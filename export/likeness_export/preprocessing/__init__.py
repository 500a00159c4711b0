"""Raw bytes to encoder tensors: the one implementation that training, evaluation and the server share.

Every module here is self-contained, because the export copies it byte for byte beside the server's ``model.py``. It has
a class ``Preprocessor(assets)`` that is called with a list of raw items and returns the encoder's tensors and, per
item, an empty string or the reason why the item could not be read. An item that fails gets what an item without content
would (zeros; of a text the tokens that every text has, because attention over nothing is undefined); its neighbours are
not touched. One reason, `NOTHING_KNOWN` of the wire contract, says that all is well but unknown: it is no failure where
another tower of the modality knows something.
"""
