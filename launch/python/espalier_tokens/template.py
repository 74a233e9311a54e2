"""The template that makes one text of the fields of a record."""

import string

from espalier_launch.stop import USAGE, Stop


def unescape(template):
    """\\n, \\t and \\\\ of a template that a shell passed as it stood."""
    out, i = [], 0
    while i < len(template):
        two = template[i : i + 2]
        if two in ("\\n", "\\t", "\\\\"):
            out.append({"n": "\n", "t": "\t", "\\": "\\"}[two[1]])
            i += 2
        else:
            out.append(template[i])
            i += 1
    return "".join(out)


def parse_template(template, loss_on):
    """[(literal, field or None)] of a template; checks its fields against --loss-on."""
    try:
        parts = [
            (literal, field, spec, conversion)
            for literal, field, spec, conversion in string.Formatter().parse(unescape(template))
        ]
    except ValueError as error:
        raise Stop(
            USAGE,
            f"the template {template!r} is wrong",
            str(error),
            "write fields as {name}, braces as {{ and }}",
        )
    for _, field, spec, conversion in parts:
        if field is not None and (
            not field or spec or conversion or not field.replace("_", "a").isalnum()
        ):
            raise Stop(
                USAGE,
                f"the template {template!r} is wrong",
                f"'{field}' is no plain field name",
                "write fields as {name}, braces as {{ and }}",
            )
    fields = [field for _, field, _, _ in parts if field is not None]
    for wanted in loss_on:
        if wanted not in fields:
            raise Stop(
                USAGE,
                f"--loss-on {wanted} names no field of the template",
                f"its fields are: {', '.join(fields) or 'none'}",
                "name one of them",
            )
    if not fields:
        raise Stop(
            USAGE,
            f"the template {template!r} has no field",
            "every row would be the same",
            "name a field as {name}",
        )
    return [(literal, field) for literal, field, _, _ in parts]
