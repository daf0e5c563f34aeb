"""What an administration request can be refused for. Operators read the messages: say what is wrong and what to do."""


class AdministrationError(Exception):
    """Base: a request that was understood and not carried out."""


class NotFound(AdministrationError):
    """There is no such volume, session, member or portal."""


class Conflict(AdministrationError):
    """The request is well-formed but the present state forbids it: name taken, volume in use, pool too small."""


class Invalid(AdministrationError):
    """The request can never be carried out as given: a bad size, name or combination of options."""
