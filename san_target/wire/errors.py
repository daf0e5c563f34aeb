"""What can be wrong with foreign bytes: the sender's mistake, never ours."""


class PduError(ValueError):
    """The bytes are not a PDU header, additional header or LUN that RFC 7143 section 11 knows."""


class TextError(ValueError):
    """The bytes are not the key=value text of RFC 7143 section 6.1, or exceed its limits."""
