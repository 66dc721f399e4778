"""Employee directory: list, search, add and remove. An SCGI application on Python's standard library alone.

GET  /               the list; ?q=TEXT keeps names, departments and addresses that contain TEXT
GET  /api/employees  the same as JSON
POST /add            form fields name, department, email
POST /remove         form field id

nginx speaks HTTP and passes each request on by SCGI (https://python.ca/scgi/protocol.txt): headers in a netstring, then
the body. That takes ten lines here, where Python's own HTTP server takes most of the time that this program needs to start.
"""

import html
import json
import os
import socket
import sqlite3
import sys
from contextlib import closing
from urllib.parse import parse_qs

HERE = os.path.dirname(os.path.abspath(__file__))
FIELDS = ("name", "department", "email")
MAX_FIELD = 200  # characters; longer input is refused
MAX_FORM = 8192  # bytes; nginx in front has the same limit
MAX_HEADERS = 65536  # bytes; nginx passes on 32 KiB at most, and its own parameters
TIMEOUT = 10  # seconds that nginx may take to send a request that it already has


class Refused(Exception):
    """A request that is answered with a status and a reason."""


class Directory:
    """The employees, in a SQLite file."""

    def __init__(self, path):
        self.database = sqlite3.connect(path, timeout=10, isolation_level=None)
        self.database.row_factory = sqlite3.Row
        with open(os.path.join(HERE, "schema.sql"), encoding="utf-8") as schema:
            self.database.executescript(schema.read())

    def search(self, text):
        # % and _ are letters like any other here.
        pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        where = " OR ".join(f"{field} LIKE :p ESCAPE '\\'" for field in FIELDS)
        query = f"SELECT id, name, department, email FROM employees WHERE {where} ORDER BY name, id"
        return [dict(row) for row in self.database.execute(query, {"p": pattern})]

    def add(self, employee):
        values = [employee[field] for field in FIELDS]
        self.database.execute("INSERT INTO employees (name, department, email) VALUES (?, ?, ?)", values)

    def remove(self, identifier):
        return self.database.execute("DELETE FROM employees WHERE id = ?", [identifier]).rowcount == 1


def row(employee):
    cells = "".join(f"<td>{html.escape(employee[field])}</td>" for field in FIELDS)
    button = (
        '<td><form method="post" action="/remove">'
        f'<button name="id" value="{employee["id"]}">Remove</button></form></td>'
    )
    return f"<tr>{cells}{button}</tr>"


class Application:
    def __init__(self, directory):
        self.directory = directory
        with open(os.path.join(HERE, "page.html"), encoding="utf-8") as page:
            self.page = page.read()

    def answer(self, request, body):
        """The answer to a request: status, headers and body, in the form of CGI."""
        route = request.get("REQUEST_METHOD", ""), request.get("DOCUMENT_URI", "")
        if route == ("GET", "/"):
            return reply("200 OK", self.render(query(request)), "text/html; charset=utf-8")
        if route == ("GET", "/api/employees"):
            return reply("200 OK", json.dumps(self.directory.search(query(request))), "application/json")
        if route == ("POST", "/add"):
            self.add(form(body))
            return "Status: 303 See Other\r\nLocation: /\r\n\r\n"
        if route == ("POST", "/remove"):
            self.remove(form(body))
            return "Status: 303 See Other\r\nLocation: /\r\n\r\n"
        raise Refused("404 Not Found", "There is no such page.")

    def render(self, text):
        found = self.directory.search(text)
        rows = "".join(map(row, found)) or '<tr><td colspan="4">Nobody found.</td></tr>'
        parts = {"query": html.escape(text), "rows": rows, "count": str(len(found))}
        # The page is cut at its marks, {{query}}, {{rows}} and {{count}}: what people enter is not searched for them.
        pieces = self.page.split("{{")
        return pieces[0] + "".join(
            parts[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:])
        )

    def add(self, fields):
        employee = {field: fields.get(field, "").strip() for field in FIELDS}
        if not all(0 < len(value) <= MAX_FIELD for value in employee.values()):
            raise Refused("400 Bad Request", f"Fill in every field, at most {MAX_FIELD} characters.")
        self.directory.add(employee)

    def remove(self, fields):
        identifier = fields.get("id", "")
        # Within SQLite's 64 bits.
        if not (identifier.isascii() and identifier.isdecimal() and len(identifier) < 18):
            raise Refused("400 Bad Request", "The field id must be a number.")
        if not self.directory.remove(int(identifier)):
            raise Refused("404 Not Found", "There is no such employee.")


def query(request):
    return first_values(request.get("QUERY_STRING", "")).get("q", "")[:MAX_FIELD]


def form(body):
    try:
        return first_values(body.decode())
    except UnicodeDecodeError:
        raise Refused("400 Bad Request", "The form is not text.") from None


def first_values(text):
    try:
        return {name: values[0] for name, values in parse_qs(text, max_num_fields=20).items()}
    except ValueError:
        raise Refused("400 Bad Request", "There are too many fields.") from None


def reply(status, text, kind="text/plain; charset=utf-8"):
    return f"Status: {status}\r\nContent-Type: {kind}\r\n\r\n{text}"


def read_request(stream):
    """Headers and body of a request."""
    length = b""
    while (byte := stream.read(1)) != b":":
        length += byte
        if not byte.isdigit() or len(length) > 6:
            raise Refused("400 Bad Request", "This is not SCGI.")
    size = int(length or b"0")
    if size > MAX_HEADERS:
        raise Refused("400 Bad Request", "The headers are too long.")
    words = stream.read(size + 1).decode(errors="replace").split("\0")[:-1]
    headers = dict(zip(words[::2], words[1::2]))
    size = headers.get("CONTENT_LENGTH", "")
    if not (size.isascii() and size.isdecimal()) or int(size) > MAX_FORM:
        raise Refused("413 Content Too Large", "The form is too long.")
    return headers, stream.read(int(size))


def serve(application, connection):
    connection.settimeout(TIMEOUT)
    with connection.makefile("rb") as stream:
        try:
            text = application.answer(*read_request(stream))
        except Refused as refused:
            text = reply(*refused.args)
        connection.sendall(text.encode())


def main():
    application = Application(Directory(os.environ.get("DATABASE", "employees.sqlite")))
    with socket.create_server(("127.0.0.1", int(os.environ.get("PORT", "8000")))) as listener:
        while True:
            connection, _ = listener.accept()
            with closing(connection):
                try:
                    serve(application, connection)
                except (OSError, sqlite3.Error) as error:
                    # nginx answers 502; the next request may find a better day.
                    print(f"request failed: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
