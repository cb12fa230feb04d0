"""python -m app.api: serve the API. `python -m app.api key NAME` makes an API key."""

import click

from app.api.keys import NAME, Scope, new_key
from app.api.serving import serve


@click.group("python -m app.api", invoke_without_command=True)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Serve the HTTP API, until SIGTERM or Ctrl+C."""
    if ctx.invoked_subcommand is None:
        serve()


@main.command("key")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    default=[Scope.REGISTER.value],
    help="What the key may do. Repeat it for several. Default: register.",
)
def key(name: str, scopes: tuple[str, ...]) -> None:
    """Make an API key, and its entry for API_KEYS."""
    if not NAME.fullmatch(name):
        raise click.BadParameter("A name has letters, digits, dots, hyphens and underscores.")
    made, entry = new_key(name, [Scope(scope) for scope in scopes])
    click.echo(f"key for the client, shown only now: {made}\nentry for API_KEYS: {entry}")


if __name__ == "__main__":
    main(prog_name="python -m app.api")
