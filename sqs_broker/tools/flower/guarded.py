"""What every page that reads messages or changes something requires.

Such a request is a POST of a form with Flower's token against cross-site requests. Without a login
it is refused, as Flower's API refuses it.
"""

from base64 import b64decode

from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler, authenticated


class Guarded(BaseHandler):
    """A handler that knows who asks, and what they may do."""

    def check_xsrf_cookie(self) -> None:
        """Refuse a cross-site request, also if Flower has no OAuth login and would not ask."""
        super().check_xsrf_cookie()
        RequestHandler.check_xsrf_cookie(self)

    def given(self, name: str) -> str:
        """A field of the form as it was typed; empty if it is missing. Flower's own method escapes
        it for HTML, which the templates do, too (flower 2.2 views/__init__.py)."""
        text: str = self.get_argument(name, "", escape=False)
        return text

    @property
    def is_read_only(self) -> bool:
        """Whether Flower was started with `--read_only`."""
        return bool(self.application.options.read_only)

    @property
    def has_login(self) -> bool:
        """Whether Flower knows who this is, or is set up not to ask."""
        options = self.application.options
        return bool(options.basic_auth or options.auth or self.unauthenticated_api)

    def user(self) -> str:
        """Who this is, for the audit."""
        login = self.request.headers.get("Authorization", "")
        if self.application.options.basic_auth and login.startswith("Basic "):
            name = b64decode(login.split()[1]).decode(errors="replace").partition(":")[0]
            return f"Flower: {name}"
        user = self.current_user
        return f"Flower: {user}" if isinstance(user, str) else "Flower"

    def require_login(self) -> None:
        """Raise HTTPError if anybody could have sent this."""
        if not self.has_login:
            raise HTTPError(401, "This needs a login: set FLOWER_BASIC_AUTH")

    def require_changes(self) -> None:
        """Raise HTTPError in Flower's read-only mode."""
        if self.is_read_only:
            raise HTTPError(403, "Read only mode is enabled")


class Action(Guarded):
    """What the buttons of a page send their forms to."""

    #: The name of the page.
    page: str

    @authenticated
    def get(self) -> None:
        """Show the page: a browser asks again for the address of an answer."""
        self.redirect(self.reverse_url(self.page))


def refusal(status: int, why: str) -> HTTPError:
    """An answer with a text that may contain percent signs."""
    return HTTPError(status, why.replace("%", "%%"))
