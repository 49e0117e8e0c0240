"""The WebDAV server behind ``share=``, in a process of its own: ``python -m`` runs it.

`tree` reaches files without ever leaving the folder, `resources` shows them to WsgiDAV, `locks`
keeps WebDAV's locks, `requests` is the WSGI application (what is refused, and how errors are told),
`http` reads and writes HTTP with cheroot, and `__main__` takes the connections that the parent
hands over.
"""

from typing import Final

READY: Final = b"ready"
"""What the parent gets once the server serves; anything else is why it does not."""
